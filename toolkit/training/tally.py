"""The sums of an epoch so far, on the device: loss, weight, right answers; read at its end or when a checkpoint is due."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Tally:
    """Sums over all processes that start at `before`: each holds them all, so one can write them down for the others."""

    def __init__(self, before: Sequence[float], *, device: torch.device) -> None:
        self._sums = torch.tensor(list(before), device=device)

    def add(self, loss: Tensor, weight: Tensor, right: Tensor) -> None:
        """Count one step: its summed loss, the weight of its samples and how many were right, over all processes."""
        self._sums += torch.stack([loss, weight, right])

    def so_far(self) -> list[float]:
        """The sums, to be recorded or to start from after a break."""
        return self._sums.tolist()
