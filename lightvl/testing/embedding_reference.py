"""The embedding gather by plain indexing, and the shapes that tests and benchmarks run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightvl.testing.poison import strided


@dataclass(frozen=True)
class GatherCase:
    """Tokens, table and arena of one call; about half the tokens are a picture's."""

    num_tokens: int
    width: int
    vocab_size: int = 500
    num_image_rows: int = 111


GATHER_CASES = (
    GatherCase(1, 256),
    GatherCase(500, 576),
    GatherCase(111, 7),
    GatherCase(7, 8191),
    GatherCase(3, 1, vocab_size=1),
    GatherCase(0, 64),
)
GATHER_SPEED_CASES = (GatherCase(1, 256), GatherCase(256, 576), GatherCase(256, 4096))


@dataclass(frozen=True)
class GatherInputs:
    """Arguments of `gather_embeddings` in its order."""

    ids: Tensor
    table: Tensor
    image_rows: Tensor
    image_arena: Tensor

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return them as positional arguments."""
        return self.ids, self.table, self.image_rows, self.image_arena


def make_gather_inputs(case: GatherCase, dtype: torch.dtype, seed: int = 0) -> GatherInputs:
    """Random inputs; the ids of picture tokens are far out of range, since they are not read."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return strided(torch.randn(shape, generator=generator).to(dtype))

    def random_rows(limit: int) -> Tensor:
        return torch.randint(limit, (case.num_tokens,), generator=generator)

    is_image = random_rows(2).bool()
    return GatherInputs(
        random_rows(case.vocab_size).masked_fill(is_image, 2**60),
        random(case.vocab_size, case.width),
        random_rows(case.num_image_rows).masked_fill(~is_image, -1).int(),
        random(case.num_image_rows, case.width),
    )


def gather_embeddings_reference(inputs: GatherInputs) -> Tensor:
    """Return [T, C], exactly."""
    is_image = inputs.image_rows >= 0
    text = inputs.table[inputs.ids.masked_fill(is_image, 0)]
    images = inputs.image_arena[inputs.image_rows.clamp(min=0).long()]
    return torch.where(is_image[:, None], images, text)
