"""Finds what JSON decoders pass over in silence: a key given twice in one object."""

import json


class DuplicateKeyError(ValueError):
    """An object has the same key twice; the text is the key."""


def refuse_duplicate_keys(data: bytes) -> None:
    """Looks through valid JSON.

    Raises:
        DuplicateKeyError: Some object has a key twice.
    """
    json.loads(data, object_pairs_hook=_check)


def _check(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise DuplicateKeyError(key)
        seen.add(key)
