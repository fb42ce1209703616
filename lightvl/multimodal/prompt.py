"""Where pictures stand in a prompt, and the prompt's ids with room for them.

In ids a picture's place is `<img>` directly followed by `</img>`; its tokens go between the two.
Text gets there by two roads: raw prompts spell `<image>` or `<img></img>`, and chats carry markers,
which no client can spell, through the chat template.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lightvl.errors import RequestError
from lightvl.tokenizer.tokenizer import IMG_END, IMG_START, Tokenizer
from lightvl.types import ImageSlot, TileGrid

PLACEHOLDER = "<image>"

_PLACE = IMG_START + IMG_END


@dataclass(frozen=True, slots=True)
class Picture:
    """What a prompt needs to know of a picture; see `ImageSlot` for the fields."""

    key: bytes
    width: int
    height: int
    grid: TileGrid
    num_tokens: int


def expand_prompt(
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    pictures: Sequence[Picture],
    add_special_tokens: bool = True,
) -> tuple[list[int], list[ImageSlot]]:
    """Makes room for pictures in a raw prompt.

    Args:
        tokenizer: The model's.
        prompt: Text with `<image>` or `<img></img>` for each picture in order, or ids with those
            of `<img>` and `</img>` side by side.
        pictures: The request's pictures in order.
        add_special_tokens: Whether text gets the checkpoint's start token.

    Returns:
        The ids with all picture tokens, and where each picture's begin.

    Raises:
        RequestError: There are more or fewer places than pictures.
    """
    if not isinstance(prompt, str):
        return _fill(tokenizer, list(prompt), pictures)
    if tokenizer.img_start_id is not None:
        prompt = prompt.replace(PLACEHOLDER, _PLACE)
    return _fill(tokenizer, tokenizer.encode(prompt, add_special_tokens), pictures)


def new_marker() -> str:
    """Returns a word that stands for a picture in one chat; nobody can guess it."""
    return f"picture{secrets.token_hex(16)}"


def flatten_content(parts: Sequence[str | None], marker: str) -> str:
    """Flattens a user message's content to text for the chat template.

    Args:
        parts: Texts, and None where a picture stands.
        marker: Stands for each picture, from `new_marker`.

    Returns:
        The texts one behind the other. Where they spell `<image>` exactly as often as there are
        pictures, these are the pictures' places; else each picture is put where it stands, with
        a newline, and `<image>` is plain text.
    """
    texts = [part for part in parts if part is not None]
    num_pictures = len(parts) - len(texts)
    if num_pictures and sum(text.count(PLACEHOLDER) for text in texts) == num_pictures:
        return "".join(texts).replace(PLACEHOLDER, marker)
    return "".join(f"{marker}\n" if part is None else part for part in parts)


def expand_chat(
    tokenizer: Tokenizer,
    rendered: str,
    marker: str,
    pictures: Sequence[Picture],
    add_special_tokens: bool = False,
) -> tuple[list[int], list[ImageSlot]]:
    """Makes room for pictures in a rendered chat.

    Args:
        tokenizer: The model's.
        rendered: What the chat template made of texts with markers; `<image>`, `<img>` and
            `</img>` spelled in it are plain text.
        marker: The word from `new_marker` that was used.
        pictures: The request's pictures in order.
        add_special_tokens: Whether the checkpoint's start token comes first.

    Returns:
        As `expand_prompt`.

    Raises:
        RequestError: The template dropped or repeated a picture.
    """
    ids: list[int] = []
    for index, run in enumerate(_runs(rendered)):
        text = run.replace(marker, _PLACE)
        ids += tokenizer.encode(text, add_special_tokens and index == 0)
    return _fill(tokenizer, ids, pictures)


def _runs(text: str) -> Iterator[str]:
    """Cuts `text` inside every `<img>` and `</img>`, so that neither is recognised."""
    start = 0
    for match in re.finditer(f"{IMG_START}|{IMG_END}", text):
        yield text[start : match.start() + 1]
        start = match.start() + 1
    yield text[start:]


def _fill(
    tokenizer: Tokenizer, ids: list[int], pictures: Sequence[Picture]
) -> tuple[list[int], list[ImageSlot]]:
    """Puts each picture's tokens between the brackets that stand side by side."""
    places = list(_places(tokenizer, ids))
    if len(places) != len(pictures):
        raise RequestError(
            f"the prompt has {_counted(len(places), 'image placeholder')}, "
            f"the request has {_counted(len(pictures), 'image')}: the numbers must be equal",
            code="image_count_mismatch",
        )
    filler = tokenizer.img_context_id or 0
    filled: list[int] = []
    slots = []
    done = 0
    for place, picture in zip(places, pictures, strict=True):
        filled += ids[done:place]
        slots.append(
            ImageSlot(
                picture.key,
                len(filled),
                picture.num_tokens,
                picture.grid,
                picture.width,
                picture.height,
            )
        )
        filled += [filler] * picture.num_tokens
        done = place
    return filled + ids[done:], slots


def _places(tokenizer: Tokenizer, ids: list[int]) -> Iterator[int]:
    """Yields each index of a closing bracket right behind an opening one."""
    start_id, end_id = tokenizer.img_start_id, tokenizer.img_end_id
    if start_id is None or end_id is None:
        return
    at = -1
    with suppress(ValueError):  # index() found no more
        while True:
            at = ids.index(start_id, at + 1)
            if ids[at + 1 : at + 2] == [end_id]:
                yield at + 1


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
