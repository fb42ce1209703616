"""Every operator with its cases, inputs and reference: one list for tests and benchmarks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightvl import ops
from lightvl.testing import activation_reference as activation
from lightvl.testing import attention_reference as attention
from lightvl.testing import embedding_reference as embedding
from lightvl.testing import image_reference as image
from lightvl.testing import linear_reference as linear
from lightvl.testing import norm_reference as norm
from lightvl.testing import rotary_reference as rotary
from lightvl.testing import sampling_reference as sampling
from lightvl.testing.norm_reference import EPS, NormInputs, RowsCase, make_norm_inputs
from lightvl.testing.sampling_reference import SampleCase


@dataclass(frozen=True)
class Operator:
    """How an operator is tried: `run` and `reference` take what `make` gives, and agree."""

    cases: Sequence[Any]
    speed_cases: Sequence[Any]
    make: Callable[[Any, torch.dtype], Any]
    run: Callable[[Any], Tensor]
    reference: Callable[[Any], Tensor]


def _norm(
    run: Callable[[NormInputs], Tensor],
    reference: Callable[[NormInputs], Tensor],
    cases: Sequence[RowsCase] = norm.ROWS_CASES,
    speed_cases: Sequence[RowsCase] = norm.NORM_SPEED_CASES,
) -> Operator:
    return Operator(cases, speed_cases, make_norm_inputs, run, reference)


def _make_gate_up(case: RowsCase, dtype: torch.dtype) -> Tensor:
    return make_norm_inputs(RowsCase(case.num_tokens, 2 * case.width), dtype).x * 4


def _run_rope(inputs: rotary.RopeInputs) -> Tensor:
    ops.rope_write_kv(*inputs.arguments())
    return inputs.q


def _make_sample(case: SampleCase, dtype: torch.dtype) -> tuple[Tensor, ops.SampleParams]:
    return sampling.make_logits(case, dtype), sampling.make_sample_params(case)


OPERATORS: dict[str, Operator] = {
    "rms_norm": _norm(
        lambda i: ops.rms_norm(i.x, i.weight, EPS),
        lambda i: norm.rms_norm_reference(i.x, i.weight, EPS),
        norm.ROWS_CASES + norm.PER_HEAD_CASES,
    ),
    "add_rms_norm": _norm(
        lambda i: ops.add_rms_norm(i.x, i.residual.clone(), i.weight, EPS),
        lambda i: norm.add_rms_norm_reference(i.x, i.residual, i.weight, EPS)[0],
    ),
    "layer_norm": _norm(
        lambda i: ops.layer_norm(i.x, i.weight, i.bias, EPS),
        lambda i: norm.layer_norm_reference(i.x, i.weight, i.bias, EPS),
        speed_cases=norm.VISION_SPEED_CASES,
    ),
    "scale_add": _norm(
        lambda i: ops.scale_add(i.x, i.weight, i.residual, i.bias),
        lambda i: norm.scale_add_reference(i.x, i.weight, i.residual, i.bias),
        speed_cases=norm.VISION_SPEED_CASES,
    ),
    "silu_mul": Operator(
        norm.ROWS_CASES,
        activation.SILU_MUL_SPEED_CASES,
        _make_gate_up,
        ops.silu_mul,
        activation.silu_mul_reference,
    ),
    "gelu": _norm(
        lambda i: ops.gelu(i.x, i.bias),
        lambda i: activation.gelu_reference(i.x, i.bias),
        speed_cases=activation.GELU_SPEED_CASES,
    ),
    "rope_write_kv": Operator(
        rotary.ROPE_CASES,
        rotary.ROPE_SPEED_CASES,
        rotary.make_rope_inputs,
        _run_rope,
        lambda i: rotary.rope_write_kv_reference(i)[0],
    ),
    "gather_embeddings": Operator(
        embedding.GATHER_CASES,
        embedding.GATHER_SPEED_CASES,
        embedding.make_gather_inputs,
        lambda i: ops.gather_embeddings(*i.arguments()),
        embedding.gather_embeddings_reference,
    ),
    "sample": Operator(
        sampling.SAMPLE_CASES,
        sampling.SAMPLE_SPEED_CASES,
        _make_sample,
        lambda i: ops.sample(*i).ids,
        lambda i: sampling.sample_reference(*i),
    ),
    "paged_attention": Operator(
        attention.PAGED_CASES[:-1],  # the last has no sequence
        attention.PAGED_SPEED_CASES,
        attention.make_paged_inputs,
        lambda i: ops.paged_attention(*i.arguments()),
        lambda i: attention.paged_attention_reference(i)[0],
    ),
    "vision_attention": Operator(
        attention.VISION_CASES[:-1],
        attention.VISION_SPEED_CASES,
        attention.make_vision_inputs,
        lambda i: ops.vision_attention(*i.arguments()),
        attention.vision_attention_reference,
    ),
    "image_preprocess": Operator(
        image.IMAGE_CASES,
        image.IMAGE_SPEED_CASES,
        image.make_image_inputs,
        lambda i: ops.image_preprocess(*i.arguments()),
        image.image_preprocess_reference,
    ),
}

# On the CPU these are torch's.
CUDA_OPERATORS: dict[str, Operator] = {
    "linear_small": Operator(
        linear.LINEAR_CASES,
        linear.LINEAR_SPEED_CASES,
        linear.make_linear_inputs,
        lambda i: ops.linear_small(i.x, i.weight, i.bias, residual=i.residual, silu_mul=i.silu_mul),
        linear.linear_small_reference,
    ),
}
