"""The token embedding table."""

from torch import Tensor
from torch.nn.functional import linear

from lightvl import ops
from lightvl.layers.layer import Layer, Slot, new_weight


class TokenEmbedding(Layer):
    """Rows of hidden states by token id; as a tied head also the way back."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        self.weight = new_weight(vocab_size, hidden_size)

    def slots(self) -> dict[str, Slot]:
        """Returns `weight`."""
        return {"weight": Slot(self.weight)}

    def __call__(self, ids: Tensor, image_rows: Tensor, image_arena: Tensor | None) -> Tensor:
        """Gathers rows of text and pictures.

        Args:
            ids: int64 [T].
            image_rows: int32 [T]; where >= 0, the row of `image_arena` that stands there instead.
            image_arena: [A, C].

        Returns:
            [T, C].
        """
        return ops.gather_embeddings(ids, self.weight, image_rows, image_arena)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns [S, V] for hidden [S, C]."""
        return linear(hidden, self.weight)
