"""The embedding gather: exact copies, text without an arena, errors."""

from dataclasses import replace

import pytest
import torch

from lightvl import ops
from lightvl.testing.compare import DTYPES
from lightvl.testing.embedding_reference import (
    GatherCase,
    gather_embeddings_reference,
    make_gather_inputs,
)
from lightvl.testing.poison import gap_is_intact, poisoned

CASE = GatherCase(7, 111)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_the_output_need_not_adjoin(dtype: torch.dtype) -> None:
    inputs = make_gather_inputs(CASE, dtype)
    out = poisoned(7, 111, dtype=dtype)
    torch.ops.lightvl.gather_embeddings(*inputs.arguments(), out)
    assert torch.equal(out, gather_embeddings_reference(inputs))
    assert gap_is_intact(out)


def test_without_an_arena_every_token_is_text() -> None:
    inputs = make_gather_inputs(CASE, torch.float32)
    ids = torch.arange(7)
    out = ops.gather_embeddings(ids, inputs.table, inputs.image_rows, None)
    assert torch.equal(out, inputs.table[:7])


def test_opcheck() -> None:
    inputs = make_gather_inputs(CASE, torch.float32)
    operator = torch.ops.lightvl.gather_embeddings.default
    table, arena = inputs.table.contiguous(), inputs.image_arena.contiguous()
    arguments = (inputs.ids, table, inputs.image_rows, arena, torch.zeros(7, 111))
    torch.library.opcheck(operator, arguments)


WRONG: dict[str, dict[str, torch.Tensor]] = {
    "ids is int32, expected int64": {"ids": torch.zeros(7, dtype=torch.int32)},
    r"image_rows is \[3\], expected \[T=7\]": {"image_rows": torch.zeros(3, dtype=torch.int32)},
    r"image_arena is \[5, 9\], expected \[A, C=111\]": {"image_arena": torch.zeros(5, 9)},
    "image_arena is bfloat16, expected float32": {"image_arena": torch.zeros(5, 111).bfloat16()},
    "ids has an id that table lacks": {"ids": torch.full((7,), 500)},
    "image_rows has a row that image_arena lacks": {
        "image_rows": torch.full((7,), 111, dtype=torch.int32)
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    inputs = replace(make_gather_inputs(CASE, torch.float32), **WRONG[message])
    with pytest.raises(ValueError, match=f"gather_embeddings: {message}"):
        ops.gather_embeddings(*inputs.arguments())
