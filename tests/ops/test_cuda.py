"""The CUDA kernels on the cases that the CPU's run, against the same float64 references."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lightvl import ops
from lightvl.testing.attention_reference import (
    PAGED_CASES,
    PagedCase,
    PagedInputs,
    make_paged_inputs,
    paged_attention_reference,
)
from lightvl.testing.cases import OPERATORS
from lightvl.testing.compare import DTYPES, TOLERANCE, assert_close
from lightvl.testing.image_reference import IMAGE_CASES, make_image_inputs
from lightvl.testing.norm_reference import (
    EPS,
    RowsCase,
    add_rms_norm_reference,
    make_norm_inputs,
)
from lightvl.testing.poison import gap_is_intact, poisoned_memory
from lightvl.testing.rotary_reference import (
    ROPE_CASES,
    RopeCase,
    make_rope_inputs,
    rope_write_kv_reference,
)
from tests.ops.gpu import EXACT, HALF_DTYPES, HEAD_DIMS, needs_gpu, supported, to_gpu

pytestmark = needs_gpu

SUMS = 4  # as on the CPU: sums of hundreds of products


def all_cases() -> Iterator[Any]:
    for name, operator in OPERATORS.items():
        for case in operator.cases:
            for dtype in DTYPES:
                if supported(name, case, dtype):
                    yield pytest.param(name, case, dtype, id=f"{name}-{case}-{dtype}")


@pytest.mark.parametrize(("name", "case", "dtype"), list(all_cases()))
def test_equals_the_reference(name: str, case: object, dtype: torch.dtype) -> None:
    operator = OPERATORS[name]
    expected = operator.reference(operator.make(case, dtype))
    inputs = to_gpu(operator.make(case, dtype))
    with poisoned_memory():
        actual = operator.run(inputs).cpu()
    if name in EXACT:
        assert torch.equal(actual, expected)
    else:
        assert_close(actual, expected, TOLERANCE[dtype] * SUMS)


@pytest.mark.parametrize("case", IMAGE_CASES, ids=str)
def test_pictures_equal_pillow_before_they_are_normalised(case: Any) -> None:
    inputs = make_image_inputs(case, torch.uint8)
    expected = ops.image_preprocess(*inputs.arguments())
    assert torch.equal(ops.image_preprocess(*to_gpu(inputs).arguments()).cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ROPE_CASES, ids=str)
def test_rope_writes_the_slots_and_nothing_else(case: RopeCase, dtype: torch.dtype) -> None:
    inputs = make_rope_inputs(case, dtype)
    _, k_cache, v_cache = rope_write_kv_reference(inputs)
    moved = to_gpu(inputs)
    ops.rope_write_kv(*moved.arguments())
    written = ~k_cache.isnan()
    assert torch.equal(~moved.k_cache.cpu().isnan(), written)
    assert_close(moved.k_cache.cpu()[written], k_cache[written])
    assert torch.equal(moved.v_cache.cpu().double().nan_to_num(7), v_cache.nan_to_num(7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [RowsCase(7, 500), RowsCase(3, 8191), RowsCase(500, 576)], ids=str)
def test_the_residual_is_updated_in_place(case: RowsCase, dtype: torch.dtype) -> None:
    inputs = make_norm_inputs(case, dtype)
    _, total = add_rms_norm_reference(inputs.x, inputs.residual, inputs.weight, EPS)
    moved = to_gpu(inputs)
    ops.add_rms_norm(moved.x, moved.residual, moved.weight, EPS)
    assert torch.equal(moved.residual.cpu(), total)
    assert gap_is_intact(moved.residual)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in PAGED_CASES if c.head_dim in HEAD_DIMS], ids=str)
def test_log_of_the_denominator(case: PagedCase, dtype: torch.dtype) -> None:
    inputs = make_paged_inputs(case, dtype)
    if not case.q_lens:
        return
    _, expected = paged_attention_reference(inputs)
    moved: PagedInputs = to_gpu(inputs)
    _, lse = ops.paged_attention(*moved.arguments(), lse=True)
    assert_close(lse.cpu(), expected, 1e-3)


def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="weight is on another device"):
        ops.rms_norm(torch.zeros(2, 8, device="cuda"), torch.zeros(8), 1e-5)
