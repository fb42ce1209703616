"""Value types shared by the front process and the engine; torch-free."""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort"]

GREEDY_BELOW = 1e-5
"""A temperature below this means greedy decoding."""


JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"[ ]?|\n[ ]{0,24}"}
"""Of constrained JSON, in llguidance's words: the space between tokens is bounded, so that what a
schema bounds is bounded."""


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What a sequence's text must be, from its first character to its end.

    Attributes:
        kind: `json` is a JSON schema, `regex` a regular expression for the whole text, `grammar`
            a context-free grammar in GBNF or Lark notation, `lark` one in Lark notation.
        field: What the client calls it, for errors.
    """

    kind: Literal["json", "regex", "grammar", "lark"]
    text: str
    field: str = "constraint"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is sampled and when the engine ends it.

    Text-level rules (stop strings, detokenisation) are the front's; this is what the engine sees.

    Attributes:
        temperature: Softmax temperature; below `GREEDY_BELOW` means greedy.
        top_k: Keep the k most likely ids; -1 keeps all.
        top_p: Keep the smallest set of ids with at least this mass.
        min_p: Keep ids at least this likely relative to the likeliest.
        repetition_penalty: CTRL's penalty (arXiv:1909.05858) on ids that occurred; 1 is off.
        presence_penalty: Subtracted from the logit of every id that occurred.
        frequency_penalty: Subtracted from the logit once per occurrence.
        input_penalty: Whether prompt tokens count as occurrences too.
        seed: Seed of the draw; the same seed draws the same tokens whatever the batch.
        max_new_tokens: The sequence ends with `length` after so many tokens.
        min_new_tokens: End tokens are masked until so many tokens are out.
        ignore_eos: The checkpoint's end tokens don't end the sequence.
        stop_token_ids: Further single ids that end the sequence.
        logit_bias: Added to the logits of these ids.
        allowed_token_ids: When given, only these ids can be drawn.
        constraint: When given, the text matches it if the sequence ends by `stop`, and is the
            beginning of one that does if it ends by `length`. End tokens can be drawn exactly
            where it accepts; `min_new_tokens` and `ignore_eos` hold them back while the text can
            go on.
        num_logprobs: How many of the likeliest ids to report per token; -1 reports no logprobs,
            0 the drawn id's alone.
    """

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    input_penalty: bool = False
    seed: int = 0
    max_new_tokens: int = 16
    min_new_tokens: int = 1
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    constraint: Constraint | None = None
    num_logprobs: int = -1

    @property
    def penalized(self) -> bool:
        """Whether the sampler must count occurrences for this sequence."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


class TileGrid(msgspec.Struct, frozen=True, array_like=True):
    """How a picture is cut: `cols` x `rows` tiles and perhaps a thumbnail of the whole."""

    cols: int
    rows: int
    thumbnail: bool

    @property
    def num_tiles(self) -> int:
        """Tiles that the vision tower sees, thumbnail included."""
        return self.cols * self.rows + int(self.thumbnail)


class ImageSlot(msgspec.Struct, frozen=True, array_like=True):
    """One picture's place in a tokenized prompt.

    Attributes:
        key: 32 bytes; SHA-256 over the picture's bytes, the preprocessing parameters and the
            cache namespace. Equal keys mean equal embeddings.
        start: Index in the prompt of the first of its tokens.
        num_tokens: `grid.num_tiles` times the model's tokens per tile.
        grid: How it is cut.
        width: Pixels, after EXIF orientation.
        height: Pixels, after EXIF orientation.
    """

    key: bytes
    start: int
    num_tokens: int
    grid: TileGrid
    width: int
    height: int
