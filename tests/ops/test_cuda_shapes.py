"""The CUDA kernels on shapes that only they see: models' widths, groups of heads, many rows."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvl import ops
from lightvl.testing.attention_reference import (
    PagedCase,
    PagedInputs,
    VisionCase,
    attention_reference,
    make_paged_inputs,
    make_vision_inputs,
)
from lightvl.testing.cases import OPERATORS
from lightvl.testing.compare import TOLERANCE, assert_close
from lightvl.testing.norm_reference import RowsCase
from lightvl.testing.poison import poisoned_memory
from lightvl.testing.rotary_reference import RopeCase
from tests.ops.gpu import HALF_DTYPES, needs_gpu, to_gpu

pytestmark = needs_gpu

BF16 = torch.bfloat16
SUMS = 4  # as on the CPU: sums of hundreds of products

ROWS = [RowsCase(t, c) for t, c in ((1, 3584), (257, 896), (33, 1536), (1025, 1024), (300, 3200))]
ROW_OPERATORS = ("rms_norm", "add_rms_norm", "layer_norm", "scale_add", "gelu", "silu_mul")
ROPE = (
    RopeCase(257, num_heads=28, num_kv_heads=4, head_dim=128),
    RopeCase(64, num_heads=12, num_kv_heads=2, head_dim=128, page_size=32, qk_norm=True),
    RopeCase(1000, num_heads=14, num_kv_heads=2),
)
GROUPS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
PAGED = (
    *(PagedCase((1,) * 4, (1, 64, 200, 1111), g * 2, 2, head_dim=128) for g in GROUPS),
    *(PagedCase((1, 100, 1), (300, 333, 64), g, 1, head_dim=64, page_size=32) for g in GROUPS),
    *(PagedCase((129, 64), (700, 64), g, 1, head_dim=128, page_size=16) for g in (1, 6, 7, 16)),
    PagedCase((1,) * 40, tuple(range(7, 607, 15)), 28, 4, head_dim=128),
    PagedCase((1,) * 3, (9000, 5, 129), 7, 1, head_dim=128),
    PagedCase((600,), (1900,), 7, 1, head_dim=128),
    PagedCase((257, 1, 511), (257, 1000, 900), 4, 2, head_dim=64),
)
VISION = (
    VisionCase((1025, 1025), num_heads=2),
    VisionCase((1025,), num_heads=3, head_dim=128),
    VisionCase((64,) * 9 + (1, 63, 65), num_heads=2),
    VisionCase((193, 577, 129, 1), num_heads=2),
    VisionCase((128,), num_heads=140),
    VisionCase((128,), num_heads=140, head_dim=128),
    VisionCase((127, 128, 129, 191, 192, 193), num_heads=1, head_dim=128),
    VisionCase((300, 700), num_heads=1, head_dim=96),
)


def check(name: str, case: Any, dtype: torch.dtype) -> None:
    """An operator beside its reference, both computed from the same inputs."""
    operator = OPERATORS[name]
    expected = operator.reference(operator.make(case, dtype))
    inputs = to_gpu(operator.make(case, dtype))
    with poisoned_memory():
        actual = operator.run(inputs).cpu()
    assert_close(actual, expected, TOLERANCE[dtype] * SUMS)


@pytest.mark.parametrize("case", ROWS, ids=str)
@pytest.mark.parametrize("name", ROW_OPERATORS)
def test_rows_of_models(name: str, case: RowsCase) -> None:
    check(name, case, BF16)


@pytest.mark.parametrize("case", ROPE, ids=str)
def test_rope_of_models(case: RopeCase) -> None:
    check("rope_write_kv", case, BF16)


@pytest.mark.parametrize("case", PAGED, ids=str)
def test_paged_attention_of_models(case: PagedCase) -> None:
    for dtype in HALF_DTYPES:
        check("paged_attention", case, dtype)


@pytest.mark.parametrize("case", VISION, ids=str)
def test_vision_attention_of_models(case: VisionCase) -> None:
    for dtype in HALF_DTYPES:
        check("vision_attention", case, dtype)


def sequence(inputs: PagedInputs, s: int) -> Tensor:
    """Sequence s of the call, in a call of its own."""
    begin, end = inputs.cu_q_lens[s : s + 2].tolist()
    alone = replace(
        inputs,
        q=inputs.q[begin:end],
        page_table=inputs.page_table[s : s + 1],
        cu_q_lens=torch.tensor([0, end - begin], dtype=torch.int32, device=inputs.q.device),
        context_lens=inputs.context_lens[s : s + 1],
        max_q_len=end - begin,
    )
    return ops.paged_attention(*alone.arguments())


def test_a_sequence_agrees_with_itself_in_a_batch() -> None:
    case = PagedCase((1, 64, 1, 200), (1500, 64, 3, 900), 14, 2, head_dim=128)
    inputs = to_gpu(make_paged_inputs(case, BF16))
    together = ops.paged_attention(*inputs.arguments())
    for s, (begin, end) in enumerate(((0, 1), (1, 65), (65, 66), (66, 266))):
        assert_close(together[begin:end].cpu(), sequence(inputs, s).double().cpu())


def test_large_scores_neither_overflow_nor_vanish() -> None:
    inputs = make_vision_inputs(VisionCase((200,), num_heads=1, head_dim=64), BF16)
    inputs = replace(inputs, q=inputs.q * 30, scale=1.0)
    expected, _ = attention_reference(inputs.q, inputs.k, inputs.v, 1.0, causal=False)
    assert_close(ops.vision_attention(*to_gpu(inputs).arguments()).cpu(), expected, 0.04)


def test_the_kernels_for_older_gpus_run_the_same_cases() -> None:
    """Those of sm_80, which a newer GPU takes only when it is told to."""
    if torch.cuda.get_device_capability() < (9, 0) or os.environ.get("LIGHTVL_ATTENTION"):
        pytest.skip("the GPU runs these kernels anyway")
    files = [str(Path(__file__).with_name(name)) for name in ("test_cuda.py", Path(__file__).name)]
    chosen = "equals_the_reference and attention or attention_of_models or denominator"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files]
    environment = {**os.environ, "LIGHTVL_ATTENTION": "sm80"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout
