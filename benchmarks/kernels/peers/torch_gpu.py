"""torch's own kernels: its norms and activations, cuBLAS, cuDNN's attention, top-k."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.linear import Linear
from benchmarks.kernels.paged import Paged
from benchmarks.kernels.peers import Missing
from benchmarks.kernels.sampling import Sampling
from benchmarks.kernels.timing import Prepared, keeping
from benchmarks.kernels.vision import TOKENS, Tiles
from lightvl.testing.embedding_reference import GatherInputs
from lightvl.testing.norm_reference import EPS, NormInputs

MOST_KV_BYTES = 12e9


def _cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=k.shape[1] != q.shape[1]
        )


def _stacked(i: Paged) -> tuple[Tensor, Tensor]:
    """Keys and values without pages, [S, K, length, D].

    Raises:
        Missing: the lengths differ.
    """
    if len(set(i.lens)) > 1:
        raise Missing("one length for all sequences")
    if i.kv.nbytes > MOST_KV_BYTES:
        raise Missing("a second copy of the cache is too large")
    parts = [i.contiguous(s) for s in range(len(i.lens))]
    k, v = (torch.stack(x).transpose(1, 2).contiguous() for x in zip(*parts, strict=True))
    return k, v


def decode_cudnn(i: Paged) -> Prepared:
    """The one of cuDNN on contiguous keys and values, which no server has."""
    k, v = _stacked(i)
    return keeping(lambda: _cudnn(i.q.unsqueeze(2), k, v), lambda x: x.squeeze(2))


def prefill_cudnn(i: Paged) -> Prepared:
    """The same for whole prompts."""
    if i.q_len != i.lens[0]:
        raise Missing("its causal mask is for whole prompts")
    k, v = _stacked(i)
    q = i.q.unflatten(0, (len(i.lens), i.q_len)).transpose(1, 2).contiguous()
    return keeping(lambda: _cudnn(q, k, v, causal=True), lambda x: x.transpose(1, 2).flatten(0, 1))


def vision_cudnn(i: Tiles) -> Prepared:
    """The one of cuDNN on views of the packed projection."""
    q, k, v = (x.unflatten(0, (i.num_tiles, TOKENS)).transpose(1, 2) for x in i.parts)
    return keeping(lambda: _cudnn(q, k, v), lambda x: x.transpose(1, 2).flatten(0, 1))


def rms_norm(i: NormInputs) -> Prepared:
    """F.rms_norm."""
    return keeping(lambda: F.rms_norm(i.x, (i.x.shape[-1],), i.weight, EPS))


def layer_norm(i: NormInputs) -> Prepared:
    """F.layer_norm."""
    return keeping(lambda: F.layer_norm(i.x, (i.x.shape[-1],), i.weight, i.bias, EPS))


def scale_add(i: NormInputs) -> Prepared:
    """Bias, then addcmul."""
    return keeping(lambda: torch.addcmul(i.residual, i.x + i.bias, i.weight))


def gelu(i: NormInputs) -> Prepared:
    """F.gelu alone: a speed reference, since it has no bias; what it is given has."""
    biased = i.x + i.bias
    return keeping(lambda: F.gelu(biased))


def gelu_bias(i: NormInputs) -> Prepared:
    """Bias, then F.gelu."""
    return keeping(lambda: F.gelu(i.x + i.bias))


@cache
def _compiled_silu_mul() -> object:
    def silu_mul(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    return torch.compile(silu_mul, dynamic=True)


def silu_mul_compiled(gate_up: Tensor) -> Prepared:
    """What torch.compile makes of the two lines."""
    compiled = _compiled_silu_mul()
    assert callable(compiled)
    return keeping(lambda: compiled(gate_up))


def gather_embeddings(i: GatherInputs) -> Prepared:
    """Both gathers, then a choice between them."""

    def call() -> Tensor:
        images = i.image_arena[i.image_rows.clamp(min=0)]
        return torch.where((i.image_rows >= 0)[:, None], images, F.embedding(i.ids, i.table))

    return keeping(call)


def linear(i: Linear) -> Prepared:
    """A product of cuBLAS with its own epilogue where it has one; the gate is a kernel of ours."""
    weight = i.weight.t()
    if i.bias is not None:
        bias, out = i.bias, i.new_output()
        return Prepared(lambda: torch.addmm(bias, i.x, weight, out=out), lambda: out)
    if i.residual is not None:
        residual, out = i.residual, i.new_output()
        return Prepared(lambda: torch.addmm(residual, i.x, weight, out=out), lambda: out)
    product = i.x.new_empty((i.x.shape[0], i.weight.shape[0]))
    if i.epilogue != "silu_mul":
        return Prepared(lambda: torch.mm(i.x, weight, out=product), lambda: product)
    out = i.new_output()

    def gated() -> None:
        torch.mm(i.x, weight, out=product)
        torch.ops.lightvl.silu_mul.default(product, out)

    return Prepared(gated, lambda: out)


def argmax(i: Sampling) -> Prepared:
    """Greedy by argmax."""
    return keeping(lambda: i.logits.argmax(-1))


def sample_topk(i: Sampling) -> Prepared:
    """The cheapest way in torch: top-k first, for k of at most 64, the rest on what is left."""

    def call() -> Tensor:
        values, ids = i.logits.topk(64, dim=-1)
        beyond = torch.arange(64, device="cuda") >= i.top_k[:, None]
        values = values.masked_fill(beyond, -torch.inf)
        p = values.softmax(-1)
        p = values.masked_fill(p.cumsum(-1) - p > i.top_p[:, None], -torch.inf).softmax(-1)
        drawn = (p / torch.empty_like(p).exponential_()).argmax(-1)
        return ids.gather(1, drawn[:, None]).squeeze(1)

    return keeping(call)
