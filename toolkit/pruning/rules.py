"""What each operator does to channel labels, one function an operator family.

A rule gets the operator's arguments and result and returns the labels of its results, or None where it does not apply;
then everything that went into the operator is frozen.

N images, C channels, H, W pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from toolkit.pruning.labels import Labels, aligned, compact, varies


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


MOVES = _names(
    "permute transpose t slice select squeeze unsqueeze expand split split_with_sizes chunk unbind cat stack roll flip repeat",
    "movedim narrow pixel_shuffle channel_shuffle",
)
RESHAPES = _names("view _unsafe_view reshape")
COPIES = _names("clone detach alias contiguous _to_copy lift_fresh as_strided_")
ELEMENTWISE = _names("hardswish hardswish_ native_dropout _prelu_kernel")
SPATIAL = _names(
    "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d",
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_nearest_exact2d",
)
REDUCTIONS = _names("mean sum amax amin")
BATCHNORMS = _names(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm",
    "_batch_norm_with_update",
)
FEW_CONV_GROUPS = 4


def prunes_whole_groups(num_groups: int) -> bool:
    """Whether a grouped convolution loses whole groups (true: many groups) or the same channels of each (few, wide ones)."""
    return num_groups >= FEW_CONV_GROUPS


Rule = Callable[[Labels, Any, Sequence[Any], dict[str, Any], Any], "Sequence[Tensor] | None"]


def _moves(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    first = args[0]
    if (
        isinstance(first, Tensor)
        and state.names.get(first) is not None
        and first.ndim == 2
        and func._overloadpacket.__name__ == "t"
    ):
        state.transposed[out] = first
        return [torch.zeros((), dtype=torch.int64).expand(out.shape)]
    if isinstance(first, Tensor):
        moved = func(state.of(first), *args[1:], **kwargs)
    else:
        moved = func([state.of(tensor) for tensor in first], *args[1:], **kwargs)
    return [moved] if isinstance(moved, Tensor) else list(moved)


def _reshape(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    return [state.of(args[0]).reshape(out.shape)]


def _copy(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    labels = state.of(args[0])
    return [labels] if labels.shape == out.shape else None


def _pad(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    labels = state.of(args[0])
    padded = [dim for dim in range(out.ndim) if out.shape[dim] != labels.shape[dim]]
    if all(labels.stride(dim) == 0 or labels.shape[dim] == 1 for dim in padded):  # zeros around whole channels
        for dim in padded:
            labels = labels.narrow(dim, 0, 1)
        return [labels.expand(out.shape)]
    return [func(labels, args[1], 0)]


def _elementwise(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
    operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.numel()]
    padded = [aligned(state.of(t), first.ndim) for t in operands]
    meeting: list[Tensor] = []
    for labels in padded:
        stretched = [d for d in range(first.ndim) if labels.shape[d] == 1 and first.shape[d] > 1]
        if any(varies(other, d) for other in padded for d in stretched):
            state.freeze(labels)  # one value meets many channels: it stays, and they do not depend on it
        else:
            meeting.append(labels)
    if not meeting:
        return [torch.zeros((), dtype=torch.int64).expand(first.shape)]
    result = meeting[0]
    for other in meeting[1:]:
        state.join(result, other)
        result, other = torch.broadcast_tensors(result, other)
        narrow = compact(result, other)
        result = torch.where(narrow[0] != 0, narrow[0], narrow[1])
    return [result.expand(first.shape)]


def _spatial(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    labels = state.of(args[0])
    first = out if isinstance(out, Tensor) else out[0]
    if any(varies(labels, dim) for dim in (labels.ndim - 1, labels.ndim - 2)):
        return None
    return [labels[..., :1, :1].expand(first.shape)]


def _reduce(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    labels = state.of(args[0])
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if dims is None or isinstance(dims, torch.dtype):
        return None
    dims = sorted(d % labels.ndim for d in ([dims] if isinstance(dims, int) else dims))
    if not dims or any(varies(labels, dim) for dim in dims):
        return None
    for dim in reversed(dims):
        labels = labels.narrow(dim, 0, 1)
    return [labels.reshape(out.shape)]


def _batchnorm(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    labels = state.of(args[0])
    channels_C = state.vector(labels, 1)
    for tensor in args[1:5]:
        name = state.weight(tensor) if isinstance(tensor, Tensor) else None
        if name is not None:
            state.join(channels_C, state.numbers(name, 0, len(channels_C)))
        elif isinstance(tensor, Tensor):
            return None
    return [labels]


def _convolution(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    images, weight, bias, transposed, num_groups = args[0], args[1], args[2], args[6], args[8]
    name = state.weight(weight)
    if name is None or (transposed and num_groups > 1):
        return None
    in_C = state.vector(state.of(images), 1)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    out_C = state.numbers(name, out_dim, weight.shape[out_dim])
    if num_groups == 1:
        state.consumers.add((name, in_dim))
        state.join(in_C, state.numbers(name, in_dim, weight.shape[in_dim]))
    elif prunes_whole_groups(num_groups):
        blocks = torch.cat([in_C.view(num_groups, -1), out_C.view(num_groups, -1)], dim=1)
        state.join(blocks[:, :1], blocks)
    else:
        state.consumers.add((name, 1))
        state.join(in_C.view(num_groups, -1), state.numbers(name, 1, weight.shape[1]))
        state.join(out_C.view(num_groups, -1), out_C.view(num_groups, -1)[:1])
    return _produced(state, out_C, bias, channel_dim=1, out=out)


def _linear(state: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Sequence[Tensor] | None:
    bias, features, transposed = args if len(args) == 3 else (None, *args)
    weight = state.transposed.get(transposed)
    name = state.weight(weight)
    if name is None or weight is None:
        return None
    state.consumers.add((name, 1))
    state.join(state.vector(state.of(features), 1), state.numbers(name, 1, weight.shape[1]))
    return _produced(state, state.numbers(name, 0, weight.shape[0]), bias, channel_dim=1, out=out)


def _produced(state: Labels, out_C: Tensor, bias: Tensor | None, *, channel_dim: int, out: Tensor) -> Sequence[Tensor] | None:
    if bias is not None:
        name = state.weight(bias)
        state.join(out_C, state.numbers(name, 0, len(out_C)) if name is not None else torch.zeros((), dtype=torch.int64))
    return [out_C.view([-1 if dim == channel_dim else 1 for dim in range(out.ndim)]).expand(out.shape)]


RULES: tuple[tuple[frozenset[str], Rule], ...] = (
    (_names("convolution"), _convolution),
    (_names("addmm mm"), _linear),
    (BATCHNORMS, _batchnorm),
    (MOVES, _moves),
    (RESHAPES, _reshape),
    (COPIES, _copy),
    (_names("constant_pad_nd"), _pad),
    (SPATIAL, _spatial),
    (REDUCTIONS, _reduce),
    (ELEMENTWISE, _elementwise),
)


def rule_for(func: Any) -> Rule | None:
    """The rule of the operator `func`, None when there is none."""
    name = func._overloadpacket.__name__
    for names, rule in RULES:
        if name in names:
            return rule
    return _elementwise if torch.Tag.pointwise in func.tags else None
