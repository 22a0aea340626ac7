"""Cutting channels out of a module by a plan, the same code for the first pruning and for every reload.

A plan names tensors and the indices kept, so applying it needs no tracing, no example input and no pruning library: a
pruned model is the module as its builder makes it, this surgery, and a strict load of the weights. A plan may come from
anyone's bundle, so everything in it is checked against the module before anything is changed; where it does not fit, the
module is left as it was.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.bundle import Plan
from toolkit.errors import InputRefused
from toolkit.pruning.attention import HEAD_COUNTS, free_heads, holds_heads, layout_of


def apply_plan(net: nn.Module, plan: Plan) -> None:
    """Cut from `net`, in place, what `plan` removes; train/eval modes, frozen flags and tied weights stay, gradients go.

    Pruned parameters are new objects: build optimizers afterwards. Raises `InputRefused`, before anything changes, when
    the plan names a tensor or attribute `net` lacks, an index outside its dimension, or cuts tied weights differently.
    """
    owners = tensor_owners(net)
    for name, dims in plan.kept.items():
        if name not in owners:
            raise InputRefused(f"The pruning plan names tensor '{name}', which the model does not have: it belongs to another.")
        _check_kept(name, dims, owners[name][0])
    _check_ties(plan, owners)
    changes = [
        (module, key, _checked_attribute(net, name, key, value))
        for name, values in plan.attributes.items()
        for module in [_module(net, name)]
        for key, value in values.items()
    ]
    _check_heads(net, plan)
    replaced: dict[int, Tensor] = {}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            tensor, module, key = owners[name]
            if id(tensor) not in replaced:
                replaced[id(tensor)] = _cut(tensor, dims)
            setattr(module, key, replaced[id(tensor)])
    for module, key, value in changes:
        setattr(module, key, value)
        if key in HEAD_COUNTS:
            free_heads(module)


def compose_plans(first: Plan, second: Plan) -> Plan:
    """The plan that does what applying `first` and then `second` (made on the result) does.

    Raises `InputRefused` when `second` keeps an index that `first` has removed.
    """
    kept = {name: {dim: tuple(indices) for dim, indices in dims.items()} for name, dims in first.kept.items()}
    for name, dims in second.kept.items():
        for dim, indices in dims.items():
            before = kept.setdefault(name, {}).get(dim)
            if before is not None and max(indices, default=-1) >= len(before):
                raise InputRefused(f"The second pruning plan keeps index {max(indices)} of '{name}', which has {len(before)}.")
            kept[name][dim] = tuple(indices) if before is None else tuple(before[i] for i in indices)
    attributes = {name: dict(values) for name, values in first.attributes.items()}
    for name, values in second.attributes.items():
        attributes.setdefault(name, {}).update(values)
    return Plan(kept=kept, attributes=attributes)


def tensor_owners(net: nn.Module) -> dict[str, tuple[Tensor, nn.Module, str]]:
    """Every parameter and buffer by qualified name, tied ones under each name: the tensor, its module, its name there."""
    owners: dict[str, tuple[Tensor, nn.Module, str]] = {}
    for module_name, module in net.named_modules(remove_duplicate=False):
        prefix = f"{module_name}." if module_name else ""
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                owners[prefix + key] = (tensor, module, key)
    return owners


def _check_kept(name: str, dims: Mapping[str, tuple[int, ...]], tensor: Tensor) -> None:
    for dim, indices in dims.items():
        if not dim.isdecimal() or int(dim) >= tensor.ndim:
            raise InputRefused(f"The pruning plan cuts dimension {dim} of '{name}', which has {tensor.ndim} dimensions.")
        size = tensor.shape[int(dim)]
        ascending = all(a < b for a, b in itertools.pairwise(indices))
        if not indices or not ascending or indices[0] < 0 or indices[-1] >= size:
            raise InputRefused(
                f"The pruning plan's indices for '{name}' dimension {dim} are not an ascending choice from 0..{size - 1}: "
                "the plan is damaged or belongs to another model."
            )


def _check_ties(plan: Plan, owners: Mapping[str, tuple[Tensor, nn.Module, str]]) -> None:
    names: dict[int, list[str]] = {}
    for name, (tensor, _, _) in owners.items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        cuts = [{dim: tuple(kept) for dim, kept in plan.kept.get(name, {}).items()} for name in tied]
        if any(cut != cuts[0] for cut in cuts):
            raise InputRefused(f"The pruning plan cuts the tied weights {', '.join(tied)} differently.")


def _check_heads(net: nn.Module, plan: Plan) -> None:
    """An attention reads the width of a head from its weights, so the number of heads must be what they hold."""
    for path, values in plan.attributes.items():
        module, prefix = _module(net, path), f"{path}." if path else ""
        layout = layout_of(module)
        if layout is None or layout.count not in values:
            continue
        kept = {name: plan.kept.get(f"{prefix}{name}", {}) for name in (layout.packed[0], layout.merged)}
        rows = len(kept[layout.packed[0]].get("0", ()))
        columns = len(kept[layout.merged].get("1", ()))
        if not holds_heads(module, values[layout.count], rows=rows, columns=columns):
            raise InputRefused(
                f"The pruning plan gives '{path}' {values[layout.count]} heads, which the {rows} rows and {columns} columns it "
                "keeps of their weights do not hold: the plan is damaged or belongs to another model."
            )


def sliced(tensor: Tensor, dims: Mapping[str, Sequence[int]]) -> Tensor:
    """A contiguous copy of what `dims` (indices kept, by dimension) leaves of `tensor`."""
    cut = tensor.detach()
    for dim, indices in dims.items():
        cut = cut.index_select(int(dim), torch.tensor(indices, device=cut.device))
    return cut.clone(memory_format=torch.contiguous_format)


def _cut(tensor: Tensor, dims: Mapping[str, tuple[int, ...]]) -> Tensor:
    cut = sliced(tensor, dims)
    return nn.Parameter(cut, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut


def _module(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        raise InputRefused(f"The pruning plan names module '{name}', which the model does not have.") from error


def _checked_attribute(net: nn.Module, name: str, key: str, value: Any) -> Any:
    """`value` in the type the attribute has now; only whole numbers and tuples of them may be changed by a plan."""
    current = vars(_module(net, name)).get(key)
    if type(current) is int and type(value) is int and value > 0:
        return value
    if isinstance(current, tuple) and isinstance(value, (tuple, list)) and all(type(v) is int and v > 0 for v in value):
        return tuple(value)
    raise InputRefused(f"The pruning plan sets '{key}' of module '{name}' to {value!r}; the model has {current!r} there.")
