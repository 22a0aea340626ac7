"""From chosen units to a plan, and the proof that a plan is right.

Removing a unit must give what the net gives with that unit's weights set to zero. That is how groups are proven before
they are used: one unit of each group is removed from a copy and set to zero in another, and the two must agree in double
precision. A group that breaks the net (a width written as a constant in its code) is left unpruned, and named.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from toolkit.bundle import Plan
from toolkit.errors import InputRefused
from toolkit.pruning.attention import layout_of
from toolkit.pruning.cost import evaluating
from toolkit.pruning.groups import Group
from toolkit.pruning.rules import prunes_whole_groups
from toolkit.pruning.surgery import apply_plan, tensor_owners

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}

logger = logging.getLogger(__name__)


def plan_of(net: nn.Module, groups: Sequence[Group], keeps: Sequence[Tensor]) -> Plan:
    """The plan that keeps, of each group, the units where `keeps` (one boolean vector a group) is true."""
    masks: dict[tuple[str, int], Tensor] = {}
    for group, keep in zip(groups, keeps, strict=True):
        if not bool(keep.all()):
            for member in group.members:
                mask = masks.setdefault((member.tensor, member.dim), torch.ones(len(member.units), dtype=torch.bool))
                mask &= (member.units < 0) | keep[member.units.clamp(min=0)]
    kept: dict[str, dict[str, tuple[int, ...]]] = {}
    for (name, dim), mask in masks.items():
        kept.setdefault(name, {})[str(dim)] = tuple(mask.nonzero().flatten().tolist())
    return Plan(kept=kept, attributes=_attributes(net, kept))


def zero_removed(net: nn.Module, plan: Plan) -> None:
    """Set to zero, in place, everything in `net` that `plan` would remove; `net` then computes what the pruned one does."""
    owners = tensor_owners(net)
    with torch.no_grad():
        for name, dims in plan.kept.items():
            tensor = owners[name][0]
            for dim, indices in dims.items():
                removed = torch.ones(tensor.shape[int(dim)], dtype=torch.bool)
                removed[list(indices)] = False
                tensor.index_fill_(int(dim), removed.nonzero().flatten().to(tensor.device), 0)


def prunable(net: nn.Module, groups: Sequence[Group], example_NCHW: Tensor) -> list[Group]:
    """The groups whose removal is proven right on `example_NCHW`; the others are logged with the reason.

    Raises `InputRefused` when the net's outputs are not finite.
    """
    trial = _Trial(net, example_NCHW)
    groups = [group for group in groups if group.num_units > 1]
    if trial.fault(groups) is None:
        return groups
    faults = [(group, trial.fault([group])) for group in groups]
    named = {group.name: fault for group, fault in faults if fault is not None}
    layers = ", ".join(list(named)[:6]) + (f" and {len(named) - 6} more" if len(named) > 6 else "")
    logger.warning("These layers and what they are coupled to stay unpruned: %s. %s.", layers, next(iter(named.values()), ""))
    sound = [group for group, fault in faults if fault is None]
    fault = trial.fault(sound)
    if fault is not None:
        raise InputRefused(f"Parts of this {type(net).__name__} can be pruned alone but not together: {fault}.")
    return sound


class _Trial:
    """A copy of a net on which removals are tried and undone."""

    def __init__(self, net: nn.Module, example_NCHW: Tensor) -> None:
        self.net, self.images_NCHW = copy.deepcopy(net).double(), example_NCHW.double()
        try:
            expected = self._run()
        except RuntimeError:  # float32 is written into the net's code
            self.net, self.images_NCHW = copy.deepcopy(net).float(), example_NCHW.float()
            expected = self._run()
        if not bool(torch.isfinite(expected).all()):
            raise InputRefused("The model's own outputs are NaN or infinite on a calibration image: its weights are damaged.")

    def fault(self, groups: Sequence[Group]) -> str | None:
        """Why removing the last unit of each group is wrong; None when it is right."""
        keeps = [torch.arange(group.num_units) < group.num_units - 1 for group in groups]
        plan = plan_of(self.net, groups, keeps)
        try:
            with self._undone(plan):
                apply_plan(self.net, plan)
                found = self._run()
        except Exception as error:  # whatever the net's own code raises on widths it did not expect
            return f"The net's own code does not take other widths there ({str(error).splitlines()[0]})"
        with self._undone(plan):
            owners = tensor_owners(self.net)
            for name in plan.kept:
                tensor, module, key = owners[name]
                setattr(module, key, copy.deepcopy(tensor))
            zero_removed(self.net, plan)
            expected = self._run()
        scale, difference = float(expected.abs().max()), float((expected - found).abs().max())
        if difference <= TOLERANCE[expected.dtype] * max(scale, 1e-30):
            return None
        return f"Removing a channel is not the same as setting it to zero (difference {difference:.1e} of {scale:.1e})"

    def _run(self) -> Tensor:
        with evaluating(self.net):
            return self.net(self.images_NCHW)

    @contextmanager
    def _undone(self, plan: Plan) -> Iterator[None]:
        """Put back, after the block, every tensor and attribute that `plan` touches."""
        owners = tensor_owners(self.net)
        tensors = [owners[name] for name in plan.kept]
        modules = [(self.net.get_submodule(name), values) for name, values in plan.attributes.items()]
        attributes = [(module, key, getattr(module, key)) for module, values in modules for key in values]
        try:
            yield
        finally:
            for tensor, module, key in tensors:
                setattr(module, key, tensor)
            for module, key, value in attributes:
                setattr(module, key, value)


def _attributes(net: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """The sizes that modules keep as attributes, as they are after the cut."""
    attributes: dict[str, dict[str, Any]] = {}
    owners = tensor_owners(net)
    for name, dims in kept.items():
        tensor, module, key = owners[name]
        shape = [len(dims.get(str(dim), range(size))) for dim, size in enumerate(tensor.shape)]
        for attribute, value in _sizes(module, key, tensor, shape).items():
            if getattr(module, attribute) != value:
                attributes.setdefault(name[: -len(key)].rstrip("."), {})[attribute] = value
    for path, module in net.named_modules():
        layout, prefix = layout_of(module), f"{path}." if path else ""
        cut = kept.get(f"{prefix}{layout.merged}", {}).get("1") if layout is not None else None
        if layout is not None and cut is not None:
            width = owners[f"{prefix}{layout.merged}"][0].shape[1]
            attributes.setdefault(path, {})[layout.count] = getattr(module, layout.count) * len(cut) // width
    return attributes


def _sizes(module: nn.Module, key: str, tensor: Tensor, shape: Sequence[int]) -> dict[str, int]:
    """The size attributes of `module` when its tensor `key` has `shape` in place of its own."""
    if isinstance(module, _ConvNd):
        if key != "weight":
            return {}
        groups = module.groups
        if groups > 1 and prunes_whole_groups(groups):
            groups = shape[0] * groups // tensor.shape[0]
        in_dim, out_dim = (0, 1) if module.transposed else (1, 0)
        return {"in_channels": shape[in_dim] * groups, "out_channels": shape[out_dim], "groups": groups}
    if isinstance(module, nn.Linear):
        return {"in_features": shape[1], "out_features": shape[0]} if key == "weight" else {}
    sizes = {"num_features": shape[0], "num_channels": shape[0], "num_parameters": shape[0]} if tensor.ndim == 1 else {}
    return {attribute: size for attribute, size in sizes.items() if getattr(module, attribute, None) == tensor.shape[0]}
