"""From host memory to the device, without the host waiting.

A copy out of ordinary memory stops the host until the device has done all it was given; one out of pinned memory does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Indices:
    """The same int64 indices twice: `host_N` in host memory, `here_N` on the device that trains (on the CPU one tensor)."""

    host_N: Tensor
    here_N: Tensor

    def __len__(self) -> int:
        return len(self.host_N)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, of host memory, on `device`; the host does not wait for the copy."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def indices(batches_N: Sequence[Tensor], device: torch.device) -> list[Indices]:
    """The batches with their copies on `device`, all sent in one message."""
    here = sent(torch.cat(list(batches_N)), device).split([len(batch_N) for batch_N in batches_N])
    return [Indices(host_N, here_N) for host_N, here_N in zip(batches_N, here, strict=True)]
