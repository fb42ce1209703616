"""InternVL: a vision tower, a projector and a language model."""

from torch import Tensor

from lightvl.config import ModelConfig
from lightvl.layers.context import ForwardContext
from lightvl.layers.layer import Layer
from lightvl.layers.rotary import RotaryEmbedding
from lightvl.models.decoder import Decoder
from lightvl.models.vision_tower import Projector, VisionTower


class InternVLModel(Layer):
    """Maps tiles and tokens to logits; knows nothing of requests.

    Args:
        config: The checkpoint; without `vision` there is no tower and no `encode_tiles`.

    Attributes:
        rotary: Makes `ForwardContext.cos_sin` and `rope_rows`.
    """

    def __init__(self, config: ModelConfig) -> None:
        text, vision = config.text, config.vision
        self.config = config
        self.text = Decoder(text)
        self.rotary = RotaryEmbedding(text.rope, text.head_dim, text.max_position)
        self.vision: VisionTower | None = None
        if vision is not None:
            self.vision = VisionTower(vision)
            factor = round(1 / config.downsample_ratio)
            self.projector = Projector(vision.hidden_size, text.hidden_size, factor)

    def encode_tiles(self, patches: Tensor) -> Tensor:
        """Encodes tiles for the language model.

        Args:
            patches: [B, Q, 3 * p * p] as `ops.image_preprocess` makes them.

        Returns:
            [B, tokens per tile, C].
        """
        assert self.vision is not None
        return self.projector.forward(self.vision.forward(patches))

    def embed(self, ids: Tensor, image_rows: Tensor, image_arena: Tensor | None) -> Tensor:
        """Returns the language model's input [T, C]; see `TokenEmbedding`."""
        return self.text.embedding(ids, image_rows, image_arena)

    def forward(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        """Runs the language model; overwrites `hidden` [T, C], returns [T, C] for `logits`."""
        return self.text.forward(hidden, ctx)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns [S, V] for rows [S, C] of what `forward` returned."""
        return self.text.logits(hidden)
