"""The state of torch's own generators, which Dropout and stochastic depth draw from; all else is seeded by the step."""

from collections.abc import Mapping
from typing import Any

import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's default generators: the CPU's and the device's."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put torch's default generators where `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
