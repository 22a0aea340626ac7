"""Second-order: how much the answers change if a channel's weights go, from the diagonal of the curvature (Optimal Brain
Damage, LeCun et al., NeurIPS 1989; over channels as OBD-C, Wang et al., ICML 2019).

The curvature is the Gauss-Newton matrix of the squared change of the logits. Its diagonal is the expected square of their
gradient along a random direction, so it needs no labels and one backward pass a batch. That of the loss nearly vanishes on a
net that has learned its training images (see `taylor`). Unlike `taylor`, weights of one channel that cancel each other still
count, each for itself.

N images, C channels, H, W pixels, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.pruning.gradients import along_random_direction, consumer_gradients
from toolkit.pruning.groups import Group
from toolkit.pruning.scoring import by_unit, per_index


@dataclass(frozen=True)
class Hessian:
    """Half of the squared weights times the curvature's diagonal, over a unit's slices where it is consumed.

    `seed` draws the directions.
    """

    seed: int = 0

    def __call__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        *,
        batches: Sequence[tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Scores of each group's units; `loss` is not looked at. Raises `UsageError` without batches."""
        generator = torch.Generator().manual_seed(self.seed)
        scores = [torch.zeros(group.num_units, dtype=torch.float64) for group in groups]

        def value(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
            return along_random_direction(logits_NK, generator)

        for found in consumer_gradients(net, groups, batches, value, criterion="hessian"):
            losses = {name: (weight * gradient).double() ** 2 / 2 for name, (weight, gradient) in found.items()}
            for group, score in zip(groups, scores, strict=True):
                for member in group.members:
                    if member.consumes and member.tensor in losses:
                        score += by_unit(per_index(losses[member.tensor], member.dim), member, group) / len(batches)
        return scores
