# PYTHON_ARGCOMPLETE_OK
"""The command line `lightvl` and its subcommands; each brings its own arguments and examples.

A subcommand's module is imported when its turn comes, so that `lightvl --help` and a shell that
completes words wait for little.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

import argcomplete

from lightvl.utils.env import completion_line

COMMANDS = {
    "serve": "start the server",
    "chat": "talk with a model, pictures too, in the terminal",
    "bench": "put load on any OpenAI-compatible server and measure it",
    "doctor": "say what was built, what this machine offers and what will be used",
}
EPILOG = """\
examples:
  lightvl doctor                        is everything there?
  lightvl serve                         the bundled demo model on port 8000
  lightvl chat                          talk with it, from another terminal
  lightvl bench --load L5               measure it

Every command has --help with examples. Completion, for bash:
  eval "$(register-python-argcomplete lightvl)"
For zsh and fish see `register-python-argcomplete --help`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: The command line without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(_subcommand(words))
    argcomplete.autocomplete(parser, always_complete_options=False)
    if words[:1] == ["serve"]:  # its parser answers for itself: same flags, help and errors
        return _serve(words[1:])
    options, rest = parser.parse_known_args(words)
    if "run" not in options:
        parser.print_help(sys.stderr)
        return 2
    if "flags" in options:  # of `lightvl serve`
        options.flags = rest
    elif rest:
        parser.error(f"unknown argument {rest[0]!r}: see `lightvl {words[0]} --help`")
    code: int = options.run(options)
    return code


def _serve(words: list[str]) -> int:
    from lightvl.launch import main as serve

    return serve(words, prog="lightvl serve")


def _subcommand(words: list[str]) -> str | None:
    """Returns the subcommand that is meant, also while a shell asks for completions."""
    line = completion_line()
    words = line.split()[1:] if line is not None else words
    return next((word for word in words if word in COMMANDS), None)


def make_parser(wanted: str | None) -> argparse.ArgumentParser:
    """Returns the parser; the arguments of the subcommand `wanted` alone are filled in."""
    parser = argparse.ArgumentParser(
        prog="lightvl",
        description="A server for vision-language models, and what one does with it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("lightvl-server"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        if name == "serve" and wanted == name:
            from lightvl.flags import flag_parser

            commands.add_parser(name, help=text, parents=[flag_parser("serve")], add_help=False)
            continue
        command = commands.add_parser(
            name,
            help=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == wanted:
            module = importlib.import_module(f"lightvl.cli.{name}")
            command.description, command.epilog = module.DESCRIPTION, module.EPILOG
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
