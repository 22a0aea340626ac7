"""Training from shards read out of a store: killed and resumed, or shared by two processes, it ends with the same weights."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.children import Child, together

SCRIPT = """
import os
import sys
from pathlib import Path
import fsspec
import torch
from tests.training.conftest import PREPROCESSING, make_net
from toolkit.data import Undecoded
from toolkit.data.shards import shards
from toolkit.training import FitOptions, Phase, Schedule, TrainerSpec, fit

torch.set_num_threads(1)
devices, packed, run_dir, resume = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "resume"
memory = fsspec.filesystem("memory")
for path in sorted(Path(packed).iterdir()):
    memory.pipe(f"/data/{path.name}", path.read_bytes())
data = shards("memory://data", buffer=10, lanes=2)
train, val = (Undecoded(data.split(split), PREPROCESSING) for split in ("train", "val"))
spec = TrainerSpec(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", checkpoint_every_s=0 if devices == 1 else 1e6
)
net = make_net()
net[4].p = 0.0
result = fit(
    net, train=train, val=val, preprocessing=PREPROCESSING, schedule=Schedule("one", (Phase(-1, 5, 2e-3),)),
    options=FitOptions(batch_size=16, ema_decay=0.9, freeze_batchnorm=True), trainer=spec, run_dir=run_dir, resume=resume,
)
torch.save({"net": net.state_dict(), "steps": result.num_steps}, run_dir / f"weights-{os.environ.get('RANK', 0)}.pt")
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from toolkit.data.packing import pack
    from toolkit.data.shapes import shapes

    where = tmp_path_factory.mktemp("data") / "packed"
    assert len(pack(shapes(200, size_px=16), where, shard_bytes=15_000)) > 8
    return where


def started(packed: Path, run_dir: Path, *, devices: int = 1, how: str = "new") -> list[Child]:
    return together(SCRIPT, devices, packed, run_dir, how, num_processes=devices)


def ended(child: Child, run_dir: Path) -> dict[str, Any]:
    assert child.wait() == 0, child.stderr
    return torch.load(next(run_dir.glob("weights-*.pt")), weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return ended(*started(packed, run_dir), run_dir)


def test_killed_within_an_epoch_and_resumed_it_ends_with_the_same_weights(
    packed: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    (process,) = started(packed, run_dir)
    while process.poll() is None and not any(int(path.name[:8]) >= 10 for path in run_dir.glob("checkpoints/0*.ckpt")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = ended(*started(packed, run_dir, how="resume"), run_dir)
    assert found["steps"] == undisturbed["steps"]
    assert [name for name, tensor in undisturbed["net"].items() if not torch.equal(found["net"][name], tensor)] == []


@pytest.mark.slow
def test_two_processes_that_read_their_own_shards_agree_with_one(
    packed: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    processes = started(packed, run_dir, devices=2)
    for process in processes:
        found = ended(process, run_dir)
    for name, tensor in undisturbed["net"].items():
        torch.testing.assert_close(found["net"][name], tensor, rtol=0, atol=1e-4)  # other images would move them by 1e-2
