"""First-order Taylor: how much the net's answers, or its loss, would change if a channel were removed, from gradients
(after Molchanov et al., CVPR 2019).

By default the answers: the expected squared change of the logits. Their gradient along a random direction gives an unbiased
estimate from one backward pass a batch, without labels. The gradient of the loss, the usual choice, nearly vanishes on a
net that has learned its training images, and what is left of it is noise: on a small net for digits at half the MACs,
after BatchNorm re-estimation and before any recovery, the loss kept 38 and 52 of 99 points of accuracy (two seeds), random
choice 86 and 64, the logits 94 and 96.

The change is taken where the channel is consumed: the sum of weight times gradient over its slices in the layers that take
it as an input equals the sum of activation times gradient over the channel. Producers will not do: behind a BatchNorm the
output hardly depends on the scale of a filter, and their sums say nothing.

N images, C channels, H, W pixels, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.errors import unknown_name
from toolkit.pruning.gradients import along_random_direction, consumer_gradients
from toolkit.pruning.groups import Group
from toolkit.pruning.scoring import by_unit, per_index


@dataclass(frozen=True)
class Taylor:
    """The squared first-order change `of` the "logits" or the "loss", averaged over the batches.

    `seed` draws the directions of the logits.
    """

    of: Literal["logits", "loss"] = "logits"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of not in ("logits", "loss"):
            raise unknown_name("quantity for the criterion taylor (criterion.of)", self.of, ["logits", "loss"])

    def __call__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        *,
        batches: Sequence[tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> list[Tensor]:
        """Scores of each group's units. Works on a copy: frozen parameters, gradients and modes of `net` stay as they are.

        Raises `UsageError` without batches.
        """
        generator = torch.Generator().manual_seed(self.seed)
        scores = [torch.zeros(group.num_units, dtype=torch.float64) for group in groups]

        def value(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
            return loss(logits_NK, targets_N) if self.of == "loss" else along_random_direction(logits_NK, generator)

        for found in consumer_gradients(net, groups, batches, value, criterion="taylor"):
            changes = {name: (weight * gradient).double() for name, (weight, gradient) in found.items()}
            for group, score in zip(groups, scores, strict=True):
                score += _change(group, changes) ** 2 / len(batches)
        return scores


def _change(group: Group, changes: dict[str, Tensor]) -> Tensor:
    """The change each unit of `group` would make, summed over the layers that consume it."""
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for member in group.members:
        if member.consumes and member.tensor in changes:
            total += by_unit(per_index(changes[member.tensor], member.dim), member, group)
    return total
