"""What the loop itself costs: Python calls a step, exact and the same in every run, which no clock on a shared machine is.

The tiny digits model with loss, metrics, checkpoint, CSV and bar on. Two runs that differ in their number of epochs are
counted; the difference is what the epochs cost, validation, checkpoint, log and bar included, without the start.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from toolkit.bundle import Preprocessing
from toolkit.data import Pixels, load_pixels
from toolkit.data.digits import digits
from toolkit.training import FitOptions, Phase, Schedule, TrainerSpec, fit, progress
from toolkit.training.loggers import csv_file

PREPROCESSING = Preprocessing(size_px=(8, 8), colour="L", mean=(0.5,), std=(0.5,))
BATCH_SIZE = 64


def num_calls(work: Callable[[], object]) -> int:
    """How many Python functions `work` calls."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.fixture(scope="module")
def pixels() -> tuple[Pixels, Pixels]:
    data = digits()
    return load_pixels(data.split("train"), PREPROCESSING), load_pixels(data.split("val"), PREPROCESSING)


@pytest.mark.parametrize(("cached", "most"), [(False, 1200), (True, 400)], ids=["through the Trainer", "cached features"])
def test_a_step_makes_few_python_calls(
    pixels: tuple[Pixels, Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, most: int
) -> None:
    train, val = pixels
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=True))
    spec = TrainerSpec(accelerator="cpu", cache_features=cached, checkpoint_every_s=1e6)

    def trained(num_epochs: int) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        schedule = Schedule("head", (Phase(0, num_epochs, 1e-2, augment=False),))
        run_dir = tmp_path / f"{num_epochs}"
        fit(
            net,
            train=train,
            val=val,
            preprocessing=PREPROCESSING,
            schedule=schedule,
            options=FitOptions(batch_size=BATCH_SIZE),
            trainer=spec,
            run_dir=run_dir,
            loggers=[csv_file],
        )
        assert (run_dir / "metrics.csv").is_file()
        assert list((run_dir / "checkpoints").glob("*.ckpt"))

    trained(1)  # imports and the like
    few, many = num_calls(lambda: trained(2)), num_calls(lambda: trained(6))
    steps_an_epoch = -(-len(train) // BATCH_SIZE)
    calls_a_step = (many - few) / (4 * steps_an_epoch)
    assert calls_a_step <= most
