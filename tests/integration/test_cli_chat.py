"""`lightvl chat` in a real terminal, and `lightvl serve` as a process."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightvl.cli.conversation import ChatError, Conversation, picture_url
from lightvl.cli.main import main
from lightvl.testing.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
FACE = str(ROOT / "examples/face.png")
COMMAND = [sys.executable, "-m", "lightvl.cli"]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as started:
        yield started


class Terminal:
    """`lightvl chat` behind a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "chat", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=lambda: os.login_tty(theirs),  # where Ctrl-C comes from
            env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
        )
        os.close(theirs)
        self._text = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, pattern: str) -> str:
        """Reads on until the pattern is there and returns what stood before its end."""
        deadline_s = time.monotonic() + 60
        while not (found := re.search(pattern, self._text)):
            ready, _, _ = select.select([self._ours], [], [], deadline_s - time.monotonic())
            assert ready, self._text
            self._text += os.read(self._ours, 4096).decode()
        seen, self._text = self._text[: found.end()], self._text[found.end() :]
        return seen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(server: ServerProcess) -> Iterator[Terminal]:
    started = Terminal("--url", server.url + "/v1", "--max_tokens", "400", "--temperature", "0")
    started.until("> ")
    yield started
    started.close()


def test_a_conversation(terminal: Terminal) -> None:
    terminal.type(f"/image {FACE}\n")
    terminal.until(r"1 picture\(s\)")
    terminal.type("What is this?\n")
    assert "What is this?" in terminal.until(r"64 of them pictures' \(\d+ cached\), \d+ out.*\n")
    terminal.type("/image /nowhere.png\n")
    terminal.until("/nowhere.png: No such file")
    terminal.type("/sing\n")
    terminal.until("/sing: expected one of /image")
    terminal.type("/again\n")
    terminal.until(r"64 of them pictures' \(64 cached\)")
    terminal.type("/clear\n")
    terminal.until("begun anew")
    terminal.type("/again\n")
    terminal.until("there is no question yet")
    terminal.type("/im\t")
    terminal.until("/image")
    terminal.type(f" {FACE[:-3]}\t")
    terminal.until("face.png")
    terminal.type("\n\x04")
    assert terminal.process.wait(30) == 0


def test_ctrl_c_stops_an_answer() -> None:
    slow = "-m lightvl.testing.stub_engine --step-ms 50"
    with ServerProcess(engine=slow) as server:
        # the stub says the prompt, which begins with the system's message, until its end token
        terminal = Terminal("--url", server.url, "--system", "count " * 300)
        try:
            terminal.until("> ")
            terminal.type("go on\n")
            terminal.until(r"\n(.*count){5}")
            terminal.type("\x03")
            terminal.until("stopped")
            terminal.type("/quit\n")
            assert terminal.process.wait(30) == 0
        finally:
            terminal.close()


def test_one_question(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--url", server.url, "--image", FACE, "--max-tokens", "8", "What is this?"]
    assert main(["chat", *words]) == 0
    assert capsys.readouterr().out.strip()


def test_errors_are_told(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:9", "hi"]) == 1
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err
    assert main(["chat", "--url", server.url, "--model", "another", "hi"]) == 1
    assert "404: " in capsys.readouterr().err
    assert main(["chat", "--model_dir", "/nowhere", "hi"]) == 1
    assert "/nowhere" in capsys.readouterr().err
    with pytest.raises(ChatError, match="not a picture"):
        picture_url(__file__)


def test_a_refused_question_is_taken_back(server: ServerProcess) -> None:
    talk = Conversation(server.url, options={"temperature": -1})
    talk.say("system", "Be brief.")
    with pytest.raises(ChatError, match="temperature"):
        list(talk.ask("hi", []))
    assert [message["role"] for message in talk.messages] == ["system"]
    talk = Conversation(server.url, options={"max_tokens": 4})
    said = "".join(talk.ask("hi", []))
    assert talk.messages[-1] == {"role": "assistant", "content": said}
    assert talk.usage["completion_tokens"] == 4
    assert "".join(talk.again()) == said


def test_a_checkpoint_is_served_for_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(ROOT / "lightvl/demo")
    assert main(["chat", "--model_dir", demo, "--image", FACE, "What is this?"]) == 0
    assert "smiling face" in capsys.readouterr().out


def test_serve_is_the_module() -> None:
    helps = [
        subprocess.run([sys.executable, "-m", *words, "--help"], capture_output=True, text=True)
        for words in (["lightvl.cli", "serve"], ["lightvl.api_server"])
    ]
    texts = [done.stdout.partition("options:")[2] for done in helps]
    ours, module = (text.replace("lightvl serve", "").split() for text in texts)
    assert ours == [word for word in module if word not in ("python", "-m", "lightvl.api_server")]
    assert "--cache_capacity" in ours
    bad = subprocess.run([*COMMAND, "serve", "--tp", "no"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "--tp no: expected an integer" in bad.stderr


def test_serve_serves_and_drains() -> None:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr as lines:
        try:
            address = next(m[1] for line in lines if (m := re.search(r"served on (http\S+)", line)))
            assert Conversation(address).model == "demo"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def completions(line: str) -> list[str]:
    """What a shell is told by argcomplete's protocol for this line."""
    code = "import os; os.dup2(1, 8); from lightvl.cli.main import main; main()"
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_COMP_WORDBREAKS": " ", "_ARGCOMPLETE_IFS": "\n"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    return [word.strip() for word in done.stdout.splitlines()]


def test_completion() -> None:
    assert completions("lightvl ") == ["serve", "chat", "bench", "doctor"]
    assert completions("lightvl serve --cache_c") == ["--cache_capacity"]
    assert completions("lightvl serve --visual_t") == ["--visual_tp"]
    assert completions("lightvl bench --goal_t") == ["--goal_ttft_ms", "--goal_tpot_ms"]
    assert completions("lightvl bench --content ") == ["noise", "smooth"]
    assert completions("lightvl doctor --j") == ["--json"]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["chat"], ["bench"], ["doctor"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
        assert "examples:" in capsys.readouterr().out
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err
