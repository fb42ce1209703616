"""From what a client asks to what the engine gets: pictures loaded, the prompt expanded."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec

from lightvl.api.generation import ChatPrompt, GenerationRequest, Prepared, too_late
from lightvl.config import TilingConfig
from lightvl.errors import RequestError
from lightvl.grid import num_image_tokens, tile_grid
from lightvl.multimodal.identity import picture_key
from lightvl.multimodal.pool import LoadedImage, MediaPool, RequestMedia
from lightvl.multimodal.prompt import Picture, expand_chat, expand_prompt
from lightvl.tokenizer.tokenizer import Tokenizer
from lightvl.types import Constraint, ImageSlot, SamplingParams

_LONG_TEXT = 4096
"""Characters above which encoding leaves the event loop for a thread."""

_TRIED_CONSTRAINTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRules:
    """What one request may ask for and how its pictures are cut.

    Attributes:
        max_req_total_len: Prompt plus output, in tokens.
        max_images: Pictures in a request.
        max_request_tiles: Tiles of its different pictures together.
        tiling: The checkpoint's, or None where no pictures are taken.
        tile_policy: See the flag.
        max_tiles: Bound of a picture's tiles for every request, or None.
    """

    max_req_total_len: int
    max_images: int
    max_request_tiles: int
    tiling: TilingConfig | None
    tile_policy: Literal["internvl", "lightllm"] = "internvl"
    max_tiles: int | None = None


class Preparer:
    """Prepares requests; see `PromptRules` for what it refuses."""

    def __init__(self, media: MediaPool, tokenizer: Tokenizer, rules: PromptRules) -> None:
        self._media = media
        self._tokenizer = tokenizer
        self._tried: dict[Constraint, None] = {}
        self.rules = rules

    async def prepare(
        self, request: GenerationRequest, held: RequestMedia | None = None
    ) -> Prepared:
        """Loads the pictures and expands the prompt.

        Args:
            request: What is asked for.
            held: What the request holds in the arena already; the result owns it.

        Raises:
            RequestError: A picture or a constraint is bad, or the prompt doesn't fit; nothing is
                held then.
        """
        try:
            self.check_num_images(len(request.images))
            await self._check_constraint(request.sampling)
            images: list[LoadedImage] = []
            if request.images:
                held = held or self._media.open()
                images = await _in_time(held.load(request.images), request.deadline_s)
            loaded_s = time.monotonic()
            sizes = [(image.width, image.height) for image in images]
            keys = [image.sha256 for image in images]
            bounds = [source.max_tiles for source in request.images]
            pictures = self.pictures(sizes, request.max_tiles, keys, request.salt, bounds)
            self._check_tiles(pictures)
            token_ids, slots = await self.expand(request, pictures)
            sampling = self._fitted(request, len(token_ids))
        except BaseException:
            if held is not None:
                held.release()
            raise
        return Prepared(request, sampling, token_ids, slots, images, held, loaded_s)

    def check_num_images(self, num_images: int) -> None:
        """Refuses pictures where none or fewer are taken.

        Raises:
            RequestError: 400 with both numbers.
        """
        if num_images and self.rules.tiling is None:
            raise RequestError("images: this server takes no pictures", param="images")
        if num_images > self.rules.max_images:
            raise RequestError(
                f"images: {num_images} pictures, expected at most {self.rules.max_images}",
                param="images",
            )

    async def _check_constraint(self, sampling: SamplingParams) -> None:
        """Has a media worker try a constraint that was not tried lately."""
        if sampling.constraint is None or sampling.constraint in self._tried:
            return
        await self._media.check_constraint(sampling.constraint)
        self._tried[sampling.constraint] = None
        if len(self._tried) > _TRIED_CONSTRAINTS:
            del self._tried[next(iter(self._tried))]

    def pictures(
        self,
        sizes: Sequence[tuple[int, int]],
        max_tiles: int | None,
        sha256s: Sequence[bytes] | None = None,
        namespace: bytes = b"",
        own_bounds: Sequence[int | None] = (),
    ) -> list[Picture]:
        """Returns how pictures of these (width, height) are cut and what they cost.

        Args:
            sizes: Pixels after EXIF orientation.
            max_tiles: The request's bound of tiles, or None.
            sha256s: Of the bytes; without them the keys are empty, enough to count tokens.
            namespace: Pictures are shared only within it.
            own_bounds: Of each picture's tiles, or none at all.
        """
        rules = self.rules
        if rules.tiling is None:
            return []
        common = [bound for bound in (max_tiles, rules.max_tiles) if bound is not None]
        pictures = []
        for i, (width, height) in enumerate(sizes):
            own = own_bounds[i] if own_bounds else None
            bounds = common if own is None else [*common, own]
            grid = tile_grid(
                width, height, rules.tiling, rules.tile_policy,
                max_tiles=min(bounds, default=None), num_images=len(sizes),
            )  # fmt: skip
            key = picture_key(sha256s[i], grid, rules.tiling, namespace) if sha256s else b""
            pictures.append(Picture(key, width, height, grid, num_image_tokens(grid, rules.tiling)))
        return pictures

    def _check_tiles(self, pictures: Sequence[Picture]) -> None:
        """Refuses pictures whose embeddings the cache can't hold at once."""
        num_tiles = sum({p.key: p.grid.num_tiles for p in pictures}.values())
        if num_tiles > self.rules.max_request_tiles:
            raise RequestError(
                f"images: the pictures have {num_tiles} tiles together, expected at most "
                f"{self.rules.max_request_tiles}",
                param="images",
            )

    async def expand(
        self, request: GenerationRequest, pictures: Sequence[Picture]
    ) -> tuple[list[int], list[ImageSlot]]:
        """Returns the prompt's ids with picture slots; long texts are encoded in a thread.

        Raises:
            RequestError: Placeholders and pictures differ in number, or an id is out of range.
        """
        prompt, tokenizer = request.prompt, self._tokenizer
        if isinstance(prompt, ChatPrompt):
            text, call = (
                prompt.text,
                partial(expand_chat, tokenizer, prompt.text, prompt.marker, pictures),
            )
        else:
            text = prompt if isinstance(prompt, str) else ""
            call = partial(
                expand_prompt, tokenizer, prompt, pictures, request.text.add_special_tokens
            )
        try:
            return await asyncio.to_thread(call) if len(text) > _LONG_TEXT else call()
        except RequestError as error:
            error.param = error.param or request.prompt_field
            raise

    def _fitted(self, request: GenerationRequest, prompt_len: int) -> SamplingParams:
        """Returns the parameters with the output cut to what fits behind the prompt."""
        most, name, sampling = self.rules.max_req_total_len, request.prompt_field, request.sampling
        if prompt_len == 0:
            raise RequestError(f"{name}: empty, expected at least one token", param=name)
        if prompt_len >= most:
            raise RequestError(
                f"{name}: {prompt_len} tokens, expected less than {most}, "
                "which prompt and output share",
                param=name,
                code="context_length_exceeded",
            )
        max_new = min(sampling.max_new_tokens, most - prompt_len)
        min_new = min(sampling.min_new_tokens, max_new)
        return msgspec.structs.replace(sampling, max_new_tokens=max_new, min_new_tokens=min_new)


async def _in_time(
    loading: Awaitable[list[LoadedImage]], deadline_s: float | None
) -> list[LoadedImage]:
    rest_s = None if deadline_s is None else deadline_s - time.monotonic()
    try:
        return await asyncio.wait_for(loading, rest_s)
    except TimeoutError:
        raise too_late() from None


def random_seed() -> int:
    """Returns a seed for a request that names none."""
    return secrets.randbits(63)
