"""No criterion at all: random scores, the control every comparison of criteria should show (Le and Hua, ICLR 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.pruning.groups import Group


@dataclass(frozen=True)
class Random:
    """Uniform random scores drawn from `seed`."""

    seed: int = 0

    def __call__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        *,
        batches: Sequence[tuple[Tensor, Tensor]] = (),
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Scores of each group's units; nothing but the seed is looked at."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.rand(group.num_units, dtype=torch.float64, generator=generator) for group in groups]
