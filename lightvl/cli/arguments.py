"""What the commands' arguments share."""

import argparse
from typing import Any


def add(parser: argparse._ActionsContainer, name: str, **how: Any) -> None:  # noqa: ANN401
    """Adds `--name`, which may be written with `_` or `-`, as the server's flags may."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*spellings, dest=name, **how)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds where a server is and what it wants to know."""
    add(parser, "url", default="http://127.0.0.1:8000", help="of the server, with or without /v1")
    add(parser, "model", help="the model's name there; default: the first that /v1/models tells")
    add(parser, "api_key", help="its key; or LIGHTVL_API_KEY in the environment")


def base_url(url: str) -> str:
    """Returns a server's address up to where `/v1/…` follows."""
    return url.rstrip("/").removesuffix("/v1")


def number_above_zero(text: str) -> float:
    """Converts an argument; argparse tells a `ValueError` to the user."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def count(text: str) -> int:
    """Converts an argument that counts something there must be at least one of."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value
