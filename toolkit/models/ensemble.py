"""Several models as one: the architecture `ensemble`, whose arguments are its members, as plain data.

An ensemble takes pixels 0..255 at the size of its largest member. Its own preprocessing changes nothing (mean 0, std 1, range
0..255, so that `Normalise` is exact), because each member scales, resizes and normalises for itself, inside the module and
so inside the one exported graph. Averaged probabilities are returned as their logarithm: softmax gives them back, and the
output stays logits for every check. Members are built by the registry, so a member may be anything that it can build.

Shapes: N batch, C channels, H height, W width, K classes, M members.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolkit.bundle import Architecture, Plan, Preprocessing
from toolkit.bundle.manifest import from_plain
from toolkit.data.preprocessing import Normalise
from toolkit.errors import InputRefused, UsageError, unknown_name
from toolkit.models.resizing import Resize

KEY = "ensemble"
AVERAGES = ("logits", "probabilities")

Average = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Member:
    """One model of an ensemble: `weight` is its share of the average, `order[k]` its logit for the ensemble's label k."""

    architecture: Architecture
    weight: float
    preprocessing: Preprocessing
    order: tuple[int, ...]


class Ensemble(nn.Module):
    """The weighted average of `nets`: pixels 0..255 (N, C, H, W) at `size_px` to logits (N, K), by `average`."""

    def __init__(
        self, nets: Sequence[nn.Module], members: Sequence[Member], *, average: Average, size_px: tuple[int, int]
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(nets)
        self.views = nn.ModuleList(_view(member.preprocessing, size_px) for member in members)
        self.orders = [list(member.order) for member in members]
        self.weights = [member.weight for member in members]
        self.average = average

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The average (N, K): of the members' logits, or the logarithm of that of their probabilities."""
        logits_MNK = []
        for view, net, order in zip(self.views, self.members, self.orders, strict=True):
            logits_NK = net(view(images_NCHW))
            in_place = order == list(range(len(order)))
            logits_MNK.append(logits_NK if in_place else torch.stack([logits_NK[:, k] for k in order], dim=1))
        if self.average == "logits":
            return torch.stack([w * logits_NK for w, logits_NK in zip(self.weights, logits_MNK, strict=True)]).sum(0)
        shares_MNK = [math.log(w) + logits_NK.log_softmax(1) for w, logits_NK in zip(self.weights, logits_MNK, strict=True)]
        return torch.stack(shares_MNK).logsumexp(0)


def architecture_of(members: Sequence[Member], *, average: Average, size_px: tuple[int, int]) -> Architecture:
    """The architecture of an ensemble, as plain data. Raises `UsageError` and `InputRefused` for what is not one."""
    _require_sound(members, average)
    plain = json.loads(json.dumps([dataclasses.asdict(member) for member in members]))
    return Architecture(KEY, {"average": average, "members": plain, "size_px": [int(side) for side in size_px]})


def assemble(kwargs: Mapping[str, Any], build: Callable[[Architecture], nn.Module]) -> Ensemble:
    """The module that `architecture_of` describes, its members made by `build`. Raises `InputRefused` for other arguments."""
    try:
        members = from_plain(tuple[Member, ...], kwargs["members"])
        size_px = from_plain(tuple[int, int], list(kwargs["size_px"]))
        average = kwargs["average"]
        if set(kwargs) != {"members", "size_px", "average"}:
            raise TypeError(f"expected members, size_px and average, found {sorted(kwargs)}")
    except (KeyError, TypeError) as error:
        raise InputRefused(f"an ensemble's arguments do not have their form ({error}): its manifest is damaged.") from error
    _require_sound(members, average)
    return Ensemble([build(member.architecture) for member in members], members, average=average, size_px=size_px)


def joint_preprocessing(each: Sequence[Preprocessing]) -> Preprocessing:
    """What an ensemble of models with these preprocessings takes: pixels 0..255 at the largest height and width.

    How an image is filtered on its way to that size is the largest member's. Raises `UsageError`, saying what differs, where
    no resizing of one member's view gives another's: another colour mode, another crop or, with crops, another aspect ratio.
    """
    largest = max(each, key=lambda one: one.size_px[0] * one.size_px[1])
    for one in each:
        for name in ("colour", "resize"):
            if getattr(one, name) != getattr(largest, name):
                raise UsageError(
                    f"the members prepare images differently: {name} is {getattr(largest, name)} in one and "
                    f"{getattr(one, name)} in another. Adopt or train them with one value of it."
                )
        crops = [(p.crop_fraction, round(p.size_px[0] / p.size_px[1], 3)) for p in (one, largest)]
        if one.resize == "crop" and crops[0] != crops[1]:
            raise UsageError(
                f"the members see different crops of an image: crop_fraction {largest.crop_fraction} of {largest.size_px} px "
                f"and {one.crop_fraction} of {one.size_px} px. Adopt or train them with one crop_fraction and aspect ratio."
            )
    size_px = (max(one.size_px[0] for one in each), max(one.size_px[1] for one in each))
    channels = largest.num_channels
    return dataclasses.replace(
        largest, size_px=size_px, mean=(0.0,) * channels, std=(1.0,) * channels, value_range=(0.0, 255.0)
    )


def joint_plan(plans: Sequence[Plan]) -> Plan:
    """The pruning plan of an ensemble: each member's, under the member's name."""
    kept = {f"members.{i}.{name}": dims for i, plan in enumerate(plans) for name, dims in plan.kept.items()}
    attributes = {
        f"members.{i}.{name}".rstrip("."): values for i, plan in enumerate(plans) for name, values in plan.attributes.items()
    }
    return Plan(kept=kept, attributes=attributes)


def _view(preprocessing: Preprocessing, size_px: tuple[int, int]) -> nn.Module:
    """From the ensemble's pixels to what a member takes."""
    normalise = Normalise(preprocessing)
    if tuple(preprocessing.size_px) == tuple(size_px):
        return normalise
    return nn.Sequential(Resize(size_px, preprocessing.size_px), normalise)


def _require_sound(members: Sequence[Member], average: str) -> None:
    if average not in AVERAGES:
        raise unknown_name("average", average, AVERAGES)
    if not members:
        raise InputRefused("an ensemble needs members; this one names none.")
    num_labels = len(members[0].order)
    for member in members:
        if not 0 < member.weight <= 1 or not math.isfinite(member.weight):
            raise InputRefused(f"an ensemble's weights are shares in (0, 1]; one is {member.weight}.")
        if sorted(member.order) != list(range(num_labels)):
            raise InputRefused(
                f"an ensemble's member orders its {num_labels} labels by {list(member.order)[:8]}: no permutation."
            )
