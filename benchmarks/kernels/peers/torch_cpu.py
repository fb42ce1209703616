"""What a user of torch alone would write for each operator, on the same inputs."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lightvl.ops import SampleParams
from lightvl.testing.attention_reference import PagedInputs, VisionInputs
from lightvl.testing.embedding_reference import GatherInputs
from lightvl.testing.image_reference import ImageInputs, patches, resized_tiles
from lightvl.testing.norm_reference import EPS, NormInputs
from lightvl.testing.rotary_reference import RopeInputs
from lightvl.testing.sampling_reference import GREEDY_TEMPERATURE

Peer = Callable[[Any], object]


def _width(i: NormInputs) -> tuple[int]:
    return (i.x.shape[-1],)


def _add_rms_norm(i: NormInputs) -> Tensor:
    i.residual.add_(i.x)
    return F.rms_norm(i.residual, _width(i), i.weight, EPS)


def _silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _rope_write_kv(i: RopeInputs) -> None:
    q, k = i.q, i.k
    dim = (q.shape[-1],)
    if i.q_norm is not None:
        q, k = F.rms_norm(q, dim, i.q_norm, i.eps), F.rms_norm(k, dim, i.k_norm, i.eps)
    half_cos, half_sin = i.cos_sin[i.rows].unsqueeze(1).chunk(2, dim=-1)
    cos, sin = half_cos.repeat(1, 1, 2).to(q.dtype), half_sin.repeat(1, 1, 2).to(q.dtype)
    i.q.copy_(_rotate(q, cos, sin))
    page_size = i.k_cache.shape[2]
    pages, cells = i.slots // page_size, i.slots % page_size
    i.k_cache[pages, :, cells] = _rotate(k, cos, sin)
    i.v_cache[pages, :, cells] = i.v


def _gather_embeddings(i: GatherInputs) -> Tensor:
    is_image = i.image_rows >= 0
    out = F.embedding(i.ids.masked_fill(is_image, 0), i.table)
    out[is_image] = i.image_arena[i.image_rows[is_image].long()]
    return out


def _sample(inputs: tuple[Tensor, SampleParams]) -> Tensor:
    """Sampling with the steps in the order of transformers' logits processors."""
    logits, params = inputs
    temperature, top_k, top_p = (
        float(x[0]) for x in (params.temperature, params.top_k, params.top_p)
    )
    if temperature < GREEDY_TEMPERATURE:
        return logits.argmax(dim=-1)
    scores = logits.float() / temperature
    if top_k > 0:
        least = scores.topk(int(top_k), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        ascending, order = scores.sort(dim=-1)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        scores = scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    return scores.softmax(dim=-1).multinomial(1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    mask = None
    if causal and q.shape[2] > 1:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)


def _paged_attention(i: PagedInputs) -> Tensor:
    outs = []
    lens = i.context_lens.tolist()
    for s, (begin, end) in enumerate(pairwise(i.cu_q_lens.tolist())):
        pages = i.page_table[s, : -(-lens[s] // i.k_cache.shape[2])].long()
        k, v = (x[pages].transpose(1, 2).flatten(0, 1)[: lens[s]] for x in (i.k_cache, i.v_cache))
        outs.append(_sdpa(i.q[begin:end], k, v, i.scale, causal=True))
    return torch.cat(outs)


def _vision_attention(i: VisionInputs) -> Tensor:
    parts = pairwise(i.cu_lens.tolist())
    return torch.cat([_sdpa(i.q[a:b], i.k[a:b], i.v[a:b], i.scale, causal=False) for a, b in parts])


def _pillow_resize(i: ImageInputs) -> list[Any]:
    """The resizing alone."""
    out = []
    for image, (cols, rows, thumbnail) in zip(i.images, i.grids.tolist(), strict=True):
        picture = Image.fromarray(image.numpy())
        sizes = [(cols, rows), (1, 1)] if thumbnail else [(cols, rows)]
        for x, y in sizes:
            size = (x * i.tile_size, y * i.tile_size)
            out.append(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)))
    return out


def _pillow_and_numpy(i: ImageInputs) -> Tensor:
    """The published pipeline in float32, and the patches."""
    assert i.mean_std is not None
    mean, std = i.mean_std.numpy()
    tiles = [
        (tile.astype(np.float32) / 255 - mean) / std
        for image, grid in zip(i.images, i.grids.tolist(), strict=True)
        for tile in resized_tiles(image.numpy(), grid, i.tile_size)
    ]
    return patches(torch.from_numpy(np.stack(tiles)), i.patch_size)


PEERS: dict[str, dict[str, Peer]] = {
    "rms_norm": {"F.rms_norm": lambda i: F.rms_norm(i.x, _width(i), i.weight, EPS)},
    "add_rms_norm": {"add_ + F.rms_norm": _add_rms_norm},
    "layer_norm": {"F.layer_norm": lambda i: F.layer_norm(i.x, _width(i), i.weight, i.bias, EPS)},
    "scale_add": {"addcmul": lambda i: torch.addcmul(i.residual, i.x + i.bias, i.weight)},
    "silu_mul": {"F.silu * up": _silu_mul},
    "gelu": {"F.gelu": lambda i: F.gelu(i.x + i.bias)},
    "rope_write_kv": {"torch": _rope_write_kv},
    "gather_embeddings": {"F.embedding + index": _gather_embeddings},
    "sample": {"torch": _sample},
    "paged_attention": {"gather + sdpa": _paged_attention},
    "vision_attention": {"sdpa": _vision_attention},
    "image_preprocess": {
        "Pillow resize alone": _pillow_resize,
        "Pillow + numpy": _pillow_and_numpy,
    },
}
