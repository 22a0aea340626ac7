"""Memory that a step frees serves the next one, and goes back to the system when training is over."""

import ctypes
import resource

import pytest
import torch

from toolkit.training.allocator import kept_memory

MIB = 64

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")


def faults(num_steps: int = 4) -> float:
    """Page faults of one allocation of `MIB`, used and freed."""
    torch.ones(MIB << 18)  # the first one asks for the memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_steps):
        torch.ones(MIB << 18)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / num_steps


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / 256


def test_freed_memory_is_used_again_within_the_block_and_given_back_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    usual = faults()
    with kept_memory():
        with kept_memory():
            assert faults() < 0.05 * usual
        assert faults() < 0.05 * usual  # the outer block still holds
        held = resident_mib()
    assert resident_mib() < held - 0.8 * MIB
    assert faults() > 0.5 * usual


def test_a_choice_of_the_user_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    usual = faults()
    with kept_memory():
        assert faults() > 0.5 * usual
