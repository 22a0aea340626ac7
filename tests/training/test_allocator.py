"""Memory that a step frees serves the next one, and goes back to the system when training is over."""

import ctypes
import json
from pathlib import Path

import pytest

from tests.children import Child

MIB = 64

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")

CODE = """
import json, os, resource, sys
from pathlib import Path
import torch
from toolkit.training.allocator import kept_memory

def faults(num_steps=10):
    torch.ones(64 << 18)  # the first one asks for the memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_steps):
        torch.ones(64 << 18)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / num_steps

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) / 256

os.environ.pop("GLIBC_TUNABLES", None)
os.environ.update(json.loads(sys.argv[2]))
told = {"before": faults()}
with kept_memory():
    with kept_memory():
        told["inner"] = faults()
    told["outer"] = faults()
    told["held"] = resident_mib()
told["after"] = faults()
told["left"] = resident_mib()
Path(sys.argv[1]).write_text(json.dumps(told))
"""


def told(folder: Path, **environment: str) -> dict[str, float]:
    """Page faults of one allocation of 64 MiB, used and freed, before, within and after the block; and what is resident."""
    child = Child(CODE, folder / "told.json", json.dumps(environment))
    assert child.wait(60) == 0, child.stderr
    return json.loads((folder / "told.json").read_text())


def test_freed_memory_is_used_again_within_the_block_and_given_back_after_it(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert found["inner"] < 0.25 * found["before"]
    assert found["outer"] < 0.25 * found["before"]  # the outer block still holds
    assert found["after"] > 0.5 * found["before"]
    assert found["left"] < found["held"] - 0.8 * MIB


def test_a_choice_of_the_user_is_left_alone(tmp_path: Path) -> None:
    found = told(tmp_path, MALLOC_MMAP_THRESHOLD_="1048576")
    assert found["inner"] > 0.5 * found["before"]
