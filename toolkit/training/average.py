"""The exponential moving average of the weights, as one fused operation a step.

Averaging state dicts key by key costs nine to twelve times as much as `torch._foreach_lerp_` over the tensor list. Only
what the current phase can change is averaged: its trainable parameters and the running statistics of its BatchNorms.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from toolkit.training.sharding import locals_of, parted


class Average:
    """The average of the `live` tensors (name to tensor), starting at their present values.

    The decay of step t is min(`decay`, (1 + t) / (10 + t)), so that short phases are not held back by their start.
    """

    def __init__(self, live: Mapping[str, Tensor], *, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.names = list(live)
        self.mean = [tensor.detach().clone() for tensor in live.values()]
        self._live = locals_of(tensor.detach() for tensor in live.values())
        self._mean = locals_of(self.mean)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live tensors by one step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the live tensors hold the averaged values for the length of the block."""
        held = [tensor.clone() for tensor in self._live]
        torch._foreach_copy_(self._live, self._mean)
        try:
            yield
        finally:
            torch._foreach_copy_(self._live, held)

    def state_dict(self) -> dict[str, object]:
        """The averaged values and the step count, as plain data."""
        return {"mean": dict(zip(self.names, self.mean, strict=True)), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over what `state_dict` gave."""
        mean, num_updates = state["mean"], state["num_updates"]
        assert isinstance(mean, dict)
        assert isinstance(num_updates, int)
        taken = [parted(mean[name], like) for name, like in zip(self.names, self.mean, strict=True)]
        torch._foreach_copy_(self._mean, locals_of(taken))
        self.num_updates = num_updates
