"""Weight magnitude: a channel whose weights are small does little (Li et al., ICLR 2017; over whole dependency groups,
Fang et al., CVPR 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.errors import UsageError
from toolkit.pruning.groups import Group
from toolkit.pruning.scoring import by_unit, per_index
from toolkit.pruning.surgery import tensor_owners


@dataclass(frozen=True)
class Magnitude:
    """The `power`-norm (1 or 2) of a unit's weights in every layer that makes or takes it, each relative to its layer."""

    power: int = 2

    def __post_init__(self) -> None:
        if self.power not in (1, 2):
            raise UsageError(f"criterion.power is {self.power}; choose 1 or 2.")

    def __call__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        *,
        batches: Sequence[tuple[Tensor, Tensor]] = (),
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Scores of each group's units; `batches` and `loss` are not looked at."""
        owners = tensor_owners(net)
        scores = []
        for group in groups:
            score = torch.zeros(group.num_units, dtype=torch.float64)
            for member in group.members:
                weight = owners[member.tensor][0].detach()
                if weight.ndim > 1:
                    sizes = by_unit(per_index(weight.double().abs() ** self.power, member.dim), member, group)
                    score += sizes / sizes.mean().clamp(min=1e-30)
            scores.append(score ** (1 / self.power))
        return scores
