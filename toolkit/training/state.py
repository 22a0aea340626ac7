"""What a checkpoint holds of a fit, and the way back: whole tensors, however many processes the net is spread over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.training.average import Average
from toolkit.training.course import Course
from toolkit.training.randomness import random_state, restore_random_state
from toolkit.training.sharding import gathered, parted_moments


def state_of(
    net: nn.Module, course: Course, optimiser: torch.optim.Optimizer, average: Average | None, device: torch.device
) -> dict[str, Any]:
    """Everything a resumed run needs, as plain data; with a sharded net all processes call it together."""
    return gathered(
        {
            "course": course.state_dict(),
            "net": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": None if average is None else average.state_dict(),
            "random": random_state(device),
        }
    )


def kept_weights(net: nn.Module) -> dict[str, Tensor]:
    """The weights of `net` as they are now, by name. What is frozen is shared with the net, not copied: it must stay frozen."""
    named = net.state_dict(keep_vars=True)
    shared = {name for name, tensor in named.items() if isinstance(tensor, nn.Parameter) and not tensor.requires_grad}
    return {name: tensor.detach() if name in shared else tensor.detach().clone() for name, tensor in named.items()}


def restore(state: Mapping[str, Any], optimiser: torch.optim.Optimizer, average: Average | None, device: torch.device) -> None:
    """Give optimiser, average and random generators what `state_of` kept of them."""
    optimiser.load_state_dict(parted_moments(state["optimiser"], optimiser))
    if average is not None:
        average.load_state_dict(state["average"])
    restore_random_state(state["random"], device)
