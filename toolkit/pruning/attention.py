"""Attention that can lose heads: which tensors hold a head, and forward passes that read their widths from the weights.

A head owns rows of the query, key and value projections and columns of the output projection, and where positions are learned
a column of their table; softmax joins nothing else to it. The layers that compute attention take the width of a head, or of
all heads, from the tokens, so with fewer heads they need another forward. The module stays what it is, with its parameters and
their names; only its class becomes a subclass with that forward. A plan needs no word for this: the number of heads says it.

N images or windows, L tokens, C token width, H heads, D head width.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """Where a kind of attention keeps its heads.

    `packed` names tensors whose first dimension is query, key and value one after the other, each head after head; `merged` the
    weight whose columns are head after head; `by_head` tensors with one index a head, and in which dimension; `count` is the
    attribute with the number of heads.
    """

    packed: tuple[str, ...]
    merged: str
    by_head: tuple[tuple[str, int], ...]
    count: str
    forward: Callable[..., object]


def layout_of(module: nn.Module) -> Layout | None:
    """How `module` keeps its heads; None for what is no attention that is known here."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    found = next((layout for name, layout in LAYOUTS if name in names), None)
    if found is None or (isinstance(module, nn.MultiheadAttention) and not _is_plain(module)):
        return None
    return found


def free_heads(module: nn.Module) -> None:
    """Give `module`, in place, the forward that takes any number of heads; nothing else of it changes."""
    layout = layout_of(module)
    if layout is not None and not hasattr(type(module), "takes_any_heads"):
        module.__class__ = _freed(type(module))


def holds_heads(module: nn.Module, num_heads: int, *, rows: int, columns: int) -> bool:
    """Whether `num_heads`, no more than there were, share the `rows` of the packed and the `columns` of the merging weight."""
    layout = layout_of(module)
    if layout is None:
        return False
    before = getattr(module, layout.count)
    width = module.get_parameter(layout.merged).shape[1] // before
    return num_heads <= before and columns == num_heads * width and rows == 3 * columns


@functools.cache
def _freed(kind: type[nn.Module]) -> type[nn.Module]:
    forward = next(
        layout.forward for name, layout in LAYOUTS if name in {f"{k.__module__}.{k.__qualname__}" for k in kind.__mro__}
    )
    return type(f"AnyHeads{kind.__name__}", (kind,), {"forward": forward, "takes_any_heads": True})


def _is_plain(module: nn.MultiheadAttention) -> bool:
    """Whether query, key and value come packed from tokens of one width, batch first, with nothing added."""
    return module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn and module.batch_first


def _multihead(
    self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = True, **others: object
) -> tuple[Tensor, None]:
    if query is not key or key is not value or need_weights or any(other is not None for other in others.values()):
        raise NotImplementedError("Attention with pruned heads is self-attention without masks or returned weights.")
    qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
    q_NHLD, k_NHLD, v_NHLD = qkv.reshape(*query.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
    mixed_NHLD = F.scaled_dot_product_attention(q_NHLD, k_NHLD, v_NHLD, dropout_p=self.dropout if self.training else 0.0)
    return self.out_proj(mixed_NHLD.transpose(1, 2).flatten(2)), None


def _maxvit(self: Any, x: Tensor) -> Tensor:
    images, groups, tokens, _ = x.shape
    qkv = self.to_qkv(x).reshape(images, groups, tokens, 3, self.n_heads, -1).permute(3, 0, 1, 4, 2, 5)
    scores = qkv[0] @ (qkv[1] * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
    return self.merge((F.softmax(scores, dim=-1) @ qkv[2]).transpose(2, 3).flatten(3))


def _swin(self: Any, x: Tensor) -> Tensor:
    """Attention within shifted windows of an image (N, height, width, C), as in torchvision but for the width of a head."""
    _, height, width, channels = x.shape
    down, across = self.window_size
    x = F.pad(x, (0, 0, 0, -width % across, 0, -height % down))
    images, padded_height, padded_width, _ = x.shape
    rows, columns = padded_height // down, padded_width // across
    shift = [
        0 if side >= padded else by for by, side, padded in zip(self.shift_size, self.window_size, x.shape[1:3], strict=True)
    ]
    x = torch.roll(x, (-shift[0], -shift[1]), (1, 2)) if sum(shift) else x
    x = x.view(images, rows, down, columns, across, channels).transpose(2, 3).reshape(-1, down * across, channels)
    mixed = _window_scores(self, x, _mask(x, padded_height, padded_width, self.window_size, shift) if sum(shift) else None)
    x = F.dropout(F.linear(mixed, self.proj.weight, self.proj.bias), self.dropout, self.training)
    x = (
        x.view(images, rows, columns, down, across, channels)
        .transpose(2, 3)
        .reshape(images, padded_height, padded_width, channels)
    )
    x = torch.roll(x, (shift[0], shift[1]), (1, 2)) if sum(shift) else x
    return x[:, :height, :width].contiguous()


def _window_scores(self: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """The values of all heads (N, L, H*D), mixed within each of N windows."""
    bias, scale = self.qkv.bias, getattr(self, "logit_scale", None)
    if scale is not None and bias is not None:  # the second version's keys have no bias
        third = len(bias) // 3
        bias = torch.cat([bias[:third], torch.zeros_like(bias[:third]), bias[2 * third :]])
    qkv = F.linear(x, self.qkv.weight, bias).reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    q_NHLD, k_NHLD, v_NHLD = qkv[0], qkv[1], qkv[2]
    if scale is None:
        scores = (q_NHLD * q_NHLD.shape[-1] ** -0.5) @ k_NHLD.transpose(-2, -1)
    else:
        scores = F.normalize(q_NHLD, dim=-1) @ F.normalize(k_NHLD, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(scale, max=math.log(100.0)).exp()
    scores = scores + self.get_relative_position_bias()
    if mask is not None:
        grouped = scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]
        scores = grouped.view(-1, *scores.shape[1:])
    weights = F.dropout(F.softmax(scores, dim=-1), self.attention_dropout, self.training)
    return (weights @ v_NHLD).transpose(1, 2).flatten(2)


def _mask(x: Tensor, height: int, width: int, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """-100 between tokens of one window (windows, L, L) that the shift brought together from apart."""
    region = x.new_zeros((height, width))
    number = 0
    for top in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
        for left in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
            region[top, left] = number
            number += 1
    region = region.view(height // window[0], window[0], width // window[1], window[1]).transpose(1, 2).flatten(2).flatten(0, 1)
    apart = region[:, None] - region[:, :, None]
    return apart.masked_fill(apart != 0, -100.0)


TABLE = (("relative_position_bias_table", 1),)
LAYOUTS = (
    (
        "torch.nn.modules.activation.MultiheadAttention",
        Layout(("in_proj_weight", "in_proj_bias"), "out_proj.weight", (), "num_heads", _multihead),
    ),
    (
        "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
        Layout(("qkv.weight", "qkv.bias"), "proj.weight", (("logit_scale", 0), ("cpb_mlp.2.weight", 0)), "num_heads", _swin),
    ),
    (
        "torchvision.models.swin_transformer.ShiftedWindowAttention",
        Layout(("qkv.weight", "qkv.bias"), "proj.weight", TABLE, "num_heads", _swin),
    ),
    (
        "torchvision.models.maxvit.RelativePositionalMultiHeadAttention",
        Layout(("to_qkv.weight", "to_qkv.bias"), "merge.weight", TABLE, "n_heads", _maxvit),
    ),
)
HEAD_COUNTS = frozenset(layout.count for _, layout in LAYOUTS)
