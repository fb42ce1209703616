"""`lightvl chat`: a conversation with pictures in the terminal."""

import argparse
import contextlib
import glob
import os
import re
import readline
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from lightvl.cli.arguments import add, add_server, base_url, count
from lightvl.cli.conversation import ChatError, Conversation, picture_url
from lightvl.errors import StartupError
from lightvl.utils.env import read_environment

DESCRIPTION = """\
Talks with a model: with a server that runs (--url), any that speaks OpenAI's
/v1/chat/completions, or with a checkpoint, for which a server is started (--model_dir).
"""
EPILOG = """\
examples:
  lightvl chat                                          the server on port 8000
  lightvl chat --model_dir DIR                          start one, and end it afterwards
  lightvl chat --image face.png "What is this?"         one question, then the end
  lightvl chat --url https://host/v1 --model NAME --api_key KEY

in the conversation:
  /image PATH [PATH …]   add pictures (files or web addresses) to the next question
  /system TEXT           what the model is told first; begins anew
  /again                 the last question once more
  /clear                 begin anew
  /help, /quit           (or Ctrl-D)
  Ctrl-C stops an answer
"""
COMMANDS = ("/image", "/system", "/again", "/clear", "/help", "/quit")
_ADDRESS = re.compile(r"is served on (https?://\S+)")
_STOP_S = 40.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.usage = "lightvl chat [options] [question]"
    parser.add_argument("question", nargs="?", help="asked at once; then the command ends")
    add_server(parser)
    add(parser, "model_dir", metavar="DIR", help="start a server with this checkpoint")
    add(parser, "image", action="append", default=[], metavar="PATH", help="for the first question")
    add(parser, "system", help="what the model is told first")
    add(parser, "temperature", type=float, help="0 takes the likeliest token; default: the model's")
    add(parser, "max_tokens", type=count, help="of an answer; default: what fits")


def run(options: argparse.Namespace) -> int:
    """Talks until the user ends it."""
    console = Console(stderr=True, highlight=False)
    try:
        key = options.api_key or read_environment().api_key
        with _server(options, console) as url:
            conversation = Conversation(url, options.model, key, _fields(options))
            if options.system:
                conversation.say("system", options.system)
            terminal = _Terminal(conversation, console)
            for place in options.image:
                terminal.pictures.append(picture_url(place))
            if options.question is not None:
                return 0 if terminal.answer(options.question) else 1
            terminal.talk()
    except (ChatError, StartupError) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class _Terminal:
    """Reads lines, prints answers.

    Attributes:
        pictures: Of the next question.
    """

    def __init__(self, conversation: Conversation, console: Console) -> None:
        self.pictures: list[str] = []
        self._conversation = conversation
        self._console = console

    def talk(self) -> None:
        """Answers until the user leaves."""
        _complete_words()
        self._say(f"{self._conversation.model}; /help tells what there is, Ctrl-D ends")
        while True:
            try:
                line = input("> ").strip()
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                continue
            except EOFError:
                sys.stdout.write("\n")
                return
            try:
                if line == "/quit":
                    return
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self.answer(line)
            except ChatError as error:
                self._say(str(error), style="red")

    def answer(self, question: str | None) -> bool:
        """Prints the answer as it comes; None asks the last question again.

        Returns:
            Whether it came to its end.
        """
        talk = self._conversation
        begin_s, first_s = time.perf_counter(), 0.0
        texts = talk.again() if question is None else talk.ask(question, self.pictures)
        stopped = False
        try:
            for text in texts:
                first_s = first_s or time.perf_counter() - begin_s
                sys.stdout.write(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            stopped = True
            texts.close()  # type: ignore[attr-defined]  # a generator: closes the connection
        sys.stdout.write("\n")
        self.pictures = []
        if sys.stdout.isatty():
            took_s = time.perf_counter() - begin_s
            self._say("stopped" if stopped else _summary(talk.usage, first_s, took_s))
        return not stopped

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/image":
            self._add_pictures(rest)
        elif name == "/system":
            self._conversation.messages = []
            if rest.strip():
                self._conversation.say("system", rest.strip())
            self._say("begun anew")
        elif name == "/again":
            self.answer(None)
        elif name == "/clear":
            self._conversation.clear()
            self.pictures = []
            self._say("begun anew")
        elif name == "/help":
            self._say(EPILOG.partition("in the conversation:\n")[2].rstrip())
        else:
            raise ChatError(f"{name}: expected one of {', '.join(COMMANDS)}")

    def _add_pictures(self, rest: str) -> None:
        try:
            places = shlex.split(rest)
        except ValueError as error:
            raise ChatError(f"/image: {error}") from None
        if not places:
            raise ChatError("/image: expected a path or a web address")
        self.pictures += [picture_url(place) for place in places]
        self._say(f"{len(self.pictures)} picture(s) for the next question")

    def _say(self, text: str, style: str = "dim") -> None:
        self._console.print(text, style=style, markup=False)


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    fields = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    return {name: value for name, value in fields.items() if value is not None}


def _summary(usage: dict[str, Any], first_s: float, took_s: float) -> str:
    words = []
    if usage:
        details = usage.get("prompt_tokens_details") or {}
        words.append(f"{usage['prompt_tokens']} tokens in")
        if images := details.get("image_tokens"):
            cached = details.get("cached_image_tokens") or 0
            words.append(f"{images} of them pictures' ({cached} cached)")
        words.append(f"{usage['completion_tokens']} out")
    return ", ".join([*words, f"first after {first_s:.2f} s", f"{took_s:.2f} s in all"])


@contextlib.contextmanager
def _server(options: argparse.Namespace, console: Console) -> Iterator[str]:
    """Yields a server's address; where a checkpoint is named, the server runs for the block."""
    if options.model_dir is None:
        yield base_url(options.url)
        return
    command = [sys.executable, "-m", "lightvl.api_server", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--model_dir", options.model_dir],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C stops an answer, not the server
    )
    assert process.stderr is not None
    lines = process.stderr
    drain = threading.Thread(target=lines.read, daemon=True)
    try:
        last = ""
        with console.status("starting the server"):
            for line in lines:
                last = line.strip()
                if found := _ADDRESS.search(line):
                    break
            else:
                raise ChatError(last or "the server did not start")
        drain.start()
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if drain.ident is not None:
            drain.join()
        lines.close()


def _complete_words() -> None:
    """Has Tab complete commands, and paths behind `/image`."""

    def candidates(text: str, state: int) -> str | None:
        line = readline.get_line_buffer()
        if line.startswith("/image "):
            found = [
                path + ("/" if os.path.isdir(path) else "")
                for path in sorted(glob.glob(os.path.expanduser(text) + "*"))
            ]
        else:
            found = [command for command in COMMANDS if command.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(candidates)
    readline.parse_and_bind("tab: complete")
