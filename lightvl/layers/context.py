"""What a language model needs to know of a step beside its hidden states."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class ForwardContext:
    """One step's positions and KV pages; the runner fills it.

    Attributes:
        cos_sin: float32 [R, D]; from `RotaryEmbedding.rows`.
        rope_rows: int32 [T]; each token's row of `cos_sin`.
        slots: int64 [T]; page * P + offset where each token's KV goes, -1 for nowhere.
        page_table: int32 [S, M]; the pages of each sequence in order.
        cu_q_lens: int32 [S + 1]; where each sequence's tokens begin.
        context_lens: int32 [S]; KV tokens of each sequence, those of this step included.
        max_q_len: The most tokens that a sequence has in this step.
        kv_caches: Per layer the key and value pages, each [N, K, P, D].
    """

    cos_sin: Tensor
    rope_rows: Tensor
    slots: Tensor
    page_table: Tensor
    cu_q_lens: Tensor
    context_lens: Tensor
    max_q_len: int
    kv_caches: list[tuple[Tensor, Tensor]]
