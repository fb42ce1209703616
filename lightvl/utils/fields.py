"""Typed reading of JSON objects that other programs wrote; errors name file and key."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightvl.errors import StartupError

T = TypeVar("T")


class Fields:
    """One JSON object; a key that is null counts as absent.

    Args:
        values: The object.
        where: What it is, such as `config.json: llm_config`, for error messages.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Reads a file that holds one JSON object; an absent file reads as an empty one.

        Raises:
            StartupError: The file isn't such JSON.
        """
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            values = {}
        except (OSError, ValueError) as error:
            raise StartupError(f"{path} can't be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise StartupError(f"{path}: expected a JSON object")
        return cls(values, path.name)

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str) -> object:
        """Returns the value as it stands, or None."""
        return self.values.get(key)

    def nested(self, key: str) -> "Fields":
        """Returns a nested object; empty if absent."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        return Fields(value, f"{self.where}: {key}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Returns an integer of at least `least`; without a default the key is required."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.bad(key, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a number above 0; without a default the key is required."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.bad(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Returns a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.bad(key, "a string")
        return value

    def choice(self, key: str, allowed: Mapping[str, T], default: str) -> T:
        """Returns what `allowed` says for the string at `key`."""
        value = self.text(key, default)
        if value not in allowed:
            raise self.bad(key, " or ".join(allowed))
        return allowed[value]

    def triple(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Returns three numbers."""
        value = self._value(key, list(default))
        if not isinstance(value, list) or len(value) != 3:
            raise self.bad(key, "three numbers")
        if not all(isinstance(x, int | float) for x in value):
            raise self.bad(key, "three numbers")
        return float(value[0]), float(value[1]), float(value[2])

    def square(self, key: str, default: int | None = None) -> int:
        """Returns a side in pixels, written as a number or as two equal ones."""
        value = self._value(key, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if not isinstance(value, int) or value < 1:
            raise self.bad(key, "the side of a square in pixels")
        return value

    def bad(self, key: str, expected: str) -> StartupError:
        """Returns the error that says what stands at `key` and what was expected."""
        return StartupError(f"{self.where}: {key} is {self.values.get(key)!r}, expected {expected}")

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise StartupError(f"{self.where}: {key} is missing")
        return value
