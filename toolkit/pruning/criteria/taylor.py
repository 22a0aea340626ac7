"""First-order Taylor: how much the loss would change if a channel were removed, from one gradient (Molchanov et al.,
CVPR 2019).

The change is taken where the channel is consumed: the sum of weight times gradient over its slices in the layers that take
it as an input equals the sum of activation times gradient over the channel. Producers will not do: behind a BatchNorm the
loss does not depend on the scale of a filter, and their sums say nothing.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.errors import UsageError
from toolkit.pruning.groups import Group
from toolkit.pruning.scoring import by_unit, per_index
from toolkit.pruning.surgery import tensor_owners


@dataclass(frozen=True)
class Taylor:
    """The squared first-order change of the loss, averaged over the batches (small batches tell more)."""

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
        if not batches:
            raise UsageError("The criterion 'taylor' needs labelled batches to rate channels; give some, or use 'magnitude'.")
        twin = copy.deepcopy(net).eval()
        for parameter in twin.parameters():
            parameter.requires_grad_(True)
        names = {member.tensor for group in groups for member in group.members if member.consumes}
        owners = tensor_owners(twin)
        weights = {name: owners[name][0] for name in sorted(names)}
        scores = [torch.zeros(group.num_units, dtype=torch.float64) for group in groups]
        for images_NCHW, targets_N in batches:
            with torch.enable_grad():
                value = loss(twin(images_NCHW), targets_N)
            gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            changes = {
                name: (weight * gradient).detach().double()
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
                if gradient is not None
            }
            for group, score in zip(groups, scores, strict=True):
                change = torch.zeros(group.num_units, dtype=torch.float64)
                for member in group.members:
                    if member.consumes and member.tensor in changes:
                        change += by_unit(per_index(changes[member.tensor], member.dim), member, group)
                score += change**2 / len(batches)
        return scores
