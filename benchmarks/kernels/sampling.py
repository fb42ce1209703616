"""Rows of sampling over the vocabulary of the models: greedy, and top-k with top-p and a draw."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.kernels.row import Row, Target
from benchmarks.kernels.timing import Prepared
from lightvl import ops
from lightvl.ops import SampleParams
from lightvl.testing.sampling_reference import SampleCase, make_sample_params

VOCABULARY = 151674
TOP_K, TOP_P, MIN_P = 50, 0.9, 0.01
# For each batch the target and the best peer where it was set.
GREEDY = {1: (6, 9.1), 8: (7, 12.1), 32: (11, 20.6), 128: (33, 45), 256: (64, 76)}
DRAW = {1: (12, 86), 8: (15, 106), 32: (22, 141), 128: (55, 447), 256: (105, 651)}
COMPARED_ROWS = 4  # with the CPU's draws


@dataclass(frozen=True)
class Sampling:
    """Logits float32 [S, V] and the settings of each row."""

    logits: Tensor
    params: SampleParams

    @cached_property
    def top_k(self) -> Tensor:
        """int32 [S]."""
        return self.params.top_k

    @cached_property
    def top_p(self) -> Tensor:
        """float32 [S]."""
        return self.params.top_p


def _rows_of(params: SampleParams, rows: int | None, device: str) -> SampleParams:
    names = ("temperature", "top_k", "top_p", "min_p", "seeds", "offsets")
    return replace(params, **{n: getattr(params, n)[:rows].to(device) for n in names})


def make(case: SampleCase) -> Sampling:
    """Logits with a spread like a language model's."""
    logits = torch.randn(case.num_rows, VOCABULARY, device="cuda") * 3
    return Sampling(logits, _rows_of(make_sample_params(case), None, "cuda"))


def check(i: Sampling) -> Callable[[Tensor], float]:
    """Share of the rows that drew an id which the filters drop."""
    kept = torch.ones_like(i.logits, dtype=torch.bool)
    if float(i.params.temperature[0]) == 0:
        kept = i.logits == i.logits.amax(dim=1, keepdim=True)
    else:
        least = i.logits.topk(TOP_K, dim=1).values[:, -1:]
        kept = i.logits >= least
        p = i.logits.double().masked_fill(~kept, -torch.inf).softmax(1).sort(1, descending=True)
        inside = p.values.cumsum(1) - p.values < TOP_P + 1e-5
        kept &= torch.zeros_like(kept).scatter(1, p.indices, inside)
    return lambda ids: 1 - float(kept.gather(1, ids.long().view(-1, 1)).float().mean())


def _strict(i: Sampling) -> Callable[[Tensor], float]:
    """The same, and the first rows' ids are those that the CPU kernel draws."""
    valid = check(i)
    few = ops.sample(i.logits[:COMPARED_ROWS].cpu(), _rows_of(i.params, COMPARED_ROWS, "cpu")).ids

    def error(ids: Tensor) -> float:
        return valid(ids) + float((ids[:COMPARED_ROWS].cpu() != few).float().mean())

    return error


def ours(i: Sampling) -> Prepared:
    """Our operator."""
    p, ids = i.params, torch.full_like(i.params.seeds, -1)
    arguments = (i.logits, p.temperature, p.top_k, p.top_p, p.min_p, p.seeds, p.offsets)
    operator = torch.ops.lightvl.sample.default
    return Prepared(
        lambda: operator(*arguments, *[None] * 7, ids, None, None, None), lambda: ids.clone()
    )


def rows() -> Iterator[Row]:
    """Greedy rows, then rows with filters."""
    for group, batches in (("greedy", GREEDY), ("sampling", DRAW)):
        for batch, aim in batches.items():
            filters = {} if group == "greedy" else {"top_k": TOP_K, "top_p": TOP_P, "min_p": MIN_P}
            temperature = 0.0 if group == "greedy" else 1.0
            case = SampleCase(batch, VOCABULARY, temperature, **filters)  # type: ignore[arg-type]
            yield Row(
                group=group,
                operator="sample",
                shape=f"{'greedy' if group == 'greedy' else 'top-k, top-p, min-p'}, batch {batch}",
                target=Target(*aim),
                num_bytes=4 * batch * VOCABULARY,
                num_flops=0,
                rate="read",
                set_bytes=4 * batch * VOCABULARY,
                make=lambda case=case: make(case),  # type: ignore[misc]
                check=_strict,
                tolerance=0.25,  # a row in four may fall on the other side of a threshold
                ours=ours,
                most_sets=16,
                quick=batch == 1,
                peer_check=check,
            )
