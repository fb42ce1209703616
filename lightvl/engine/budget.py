"""How much prefill and vision work a step may hold; torch-free."""

from lightvl.config import EngineConfig
from lightvl.engine.plan import StepResult
from lightvl.vision.packing import MICRO_BATCH_TILES, STREAMING_TILES

_WEIGHT = 0.25


class StepBudget:
    """Bounds of one step, and what work was measured to cost.

    Without streams a step is as large as memory was planned for. While streams run, it is cut so
    that their gaps stay below `max_itl_ms` by measured cost, but never to nothing; when that is
    off, vision work is cut to a fixed number of tiles.

    Args:
        config: The engine's configuration.
    """

    def __init__(self, config: EngineConfig) -> None:
        chunk = config.chunked_prefill_size
        self._max_tokens = config.batch_max_tokens
        self._chunk = self._max_tokens if chunk is None else min(chunk, self._max_tokens)
        self._least_tokens = config.page_size
        self._cuts_text = chunk is not None
        self._max_gap_s = config.max_itl_ms / 1000
        self._tile_s = 0.0
        self._token_s = 0.0
        self._decode_s = 0.0

    def tiles(self, streaming: bool) -> int:
        """Returns how many tiles the next step may encode; half of a gap at most."""
        if not streaming:
            return MICRO_BATCH_TILES
        if not self._max_gap_s or not self._tile_s:
            return STREAMING_TILES
        affordable = int((self._max_gap_s - self._decode_s) / 2 / self._tile_s)
        return max(1, min(affordable, MICRO_BATCH_TILES))

    def prefill_tokens(self, num_decoding: int, num_tiles: int) -> int:
        """Returns how many prompt tokens the next step may compute beside its other work."""
        most = min(self._chunk, self._max_tokens - num_decoding)
        if num_decoding and self._max_gap_s and self._token_s and self._cuts_text:
            left_s = self._max_gap_s - self._decode_s - num_tiles * self._tile_s
            most = min(most, max(self._least_tokens, int(left_s / self._token_s)))
        return max(1, most)

    def observe(
        self, num_tiles: int, num_prefill: int, num_decoding: int, result: StepResult
    ) -> None:
        """Learns from a step of so many tiles, prompt tokens and decoding sequences."""
        if num_tiles:
            self._tile_s = _smooth(self._tile_s, result.vision_s / num_tiles)
        if num_prefill:
            prefill_s = max(0.0, result.text_s - self._decode_s)
            self._token_s = _smooth(self._token_s, prefill_s / num_prefill)
        elif num_decoding:
            self._decode_s = _smooth(self._decode_s, result.text_s)


def _smooth(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old) if old else new
