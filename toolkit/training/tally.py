"""The sums of an epoch so far, on the device: loss, weight, right answers; read at its end or when a checkpoint is due."""

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.training import processes


class Tally:
    """Sums that start at `before`; with `together` that is the sum over all processes, without it each one's own."""

    def __init__(self, before: Sequence[float], *, device: torch.device, together: bool) -> None:
        self.together = together
        mine = list(before) if not together or processes.rank() == 0 else [0.0, 0.0, 0.0]
        self._sums = torch.tensor(mine, device=device)

    def add(self, loss: Tensor, weight: Tensor, right: Tensor) -> None:
        """Count one step of this process: its summed loss, the weight of its samples and how many it had right."""
        self._sums += torch.stack([loss, weight, right])

    def so_far(self) -> list[float]:
        """The sums to start from after a break; `together` all processes ask for them at once."""
        sums = self._sums.clone()
        if self.together:
            processes.sum_in_place([sums])
        return sums.tolist()

    def total(self) -> list[float]:
        """The sums over all processes, which ask for them at once, at the end of an epoch."""
        processes.sum_in_place([self._sums])
        return self._sums.tolist()
