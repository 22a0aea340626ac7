"""Seeds made of several numbers, and the state of torch's own generators for what cannot be seeded a step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def seed_of(numbers: Sequence[int]) -> int:
    """A well mixed 63-bit seed of some numbers (the finaliser of SplitMix64, Steele et al., 2014)."""
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's default generators: the CPU's and the device's."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put torch's default generators where `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
