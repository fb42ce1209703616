"""README's commands and the examples, run as they stand against the server they describe."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lightvl.testing.server import ENGINE, ServerProcess

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DEMO = str(ROOT / "lightvl" / "demo")
ADDRESS = "http://127.0.0.1:8000"


def block(start: str) -> str:
    """The code block that begins with `start`."""
    found = re.search(rf"^```\w*\n({re.escape(start)}.*?)^```$", README, re.M | re.S)
    assert found, start
    return found[1]


def run(*command: str) -> str:
    """Runs a command at the repository's root and returns what it prints."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The server of the launch line, with the demo model on a free port."""
    line = block("INTERNVL_IMAGE_LENGTH=256").replace("\\\n", "")
    line = line.replace("${MODEL_PATH}", shlex.quote(DEMO))
    words = shlex.split(line)
    python = words.index("python")
    assert words[python : python + 3] == ["python", "-m", "lightvl.api_server"]
    environment = dict(word.split("=") for word in words[:python])
    arguments = words[python + 3 :]
    arguments[arguments.index("--port") + 1] = "0"
    with ServerProcess(*arguments, engine=ENGINE, environment=environment) as started:
        yield started


def test_the_launch_line_says_what_it_ignores(server: ServerProcess) -> None:
    assert "INTERNVL_IMAGE_LENGTH=256 is ignored" in server.log


def test_the_first_question(server: ServerProcess) -> None:
    told = re.search(r'The answer, shortened: `("content":"[^"]+")`', README)
    assert told
    command = block(f"curl {ADDRESS}/v1/chat/completions")
    assert told[1] in run("bash", "-c", command.replace(ADDRESS, server.url))


def test_a_native_request(server: ServerProcess) -> None:
    command = block(f"curl {ADDRESS}/generate")
    assert "white" in run("bash", "-c", command.replace(ADDRESS, server.url))


def test_curl(server: ServerProcess) -> None:
    answer = run("examples/curl.sh", "examples/face.png", "What is this?", server.url)
    assert "smiling face" in answer


def test_the_specifications_client(server: ServerProcess) -> None:
    source = (ROOT / "examples/spec_client.py").read_text()
    assert f'url = "{ADDRESS}/generate"' in source
    printed = run(sys.executable, "-c", source.replace(ADDRESS, server.url))
    assert printed.startswith("Result: {'generated_text': ['")
    assert "smiling face" in printed


def test_the_openai_client(server: ServerProcess) -> None:
    script = "examples/openai_client.py"
    assert block(".venv/bin/python").split() == [".venv/bin/python", script]
    printed = run(sys.executable, script, "examples/face.png", "What is this?", server.url)
    whole, usage, streamed = printed.splitlines()
    assert whole == streamed
    assert "smiling face" in whole
    assert "image_tokens=64" in usage


def test_offline_use() -> None:
    assert "smiling face" in run(sys.executable, "-c", block("from lightvl import LLM"))
    first, *rest = run(sys.executable, "examples/offline.py").splitlines()
    assert "smiling face" in first
    assert len(rest) == 2


def test_the_face_is_what_its_script_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "face.png"
    run(sys.executable, "examples/draw_face.py", os.fspath(drawn))
    with Image.open(drawn) as ours, Image.open(ROOT / "examples/face.png") as kept:
        assert ours.size == kept.size == (256, 256)
        assert ours.tobytes() == kept.tobytes()
