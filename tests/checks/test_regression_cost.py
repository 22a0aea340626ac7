"""Costs are counted right, and a busy machine does not become a claim about a model."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.checks.planted import stored, tiny, trained
from toolkit.bundle import Measurement, Store
from toolkit.checks.regression_cost import cost_measurements, served_graphs

IMAGE = np.full((1, 3, 32, 32), 128, np.float32)


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """More work than there are processors."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


def costs(store: Store, tmp_path: Path, *, widths: tuple[int, int], rounds: int = 40) -> dict[str, Measurement]:
    old, new = (
        stored(store, trained(num_epochs=0, width=width), width=width, graph=tmp_path / f"{i}.onnx")
        for i, width in enumerate(widths)
    )
    bundles = {"baseline": old, "candidate": new}
    with served_graphs(bundles) as graphs:
        return {m.name: m for m in cost_measurements(bundles, graphs, dict.fromkeys(bundles, IMAGE), rounds=rounds)}


def test_counts_are_those_of_the_net(store: Store, tmp_path: Path) -> None:
    found = costs(store, tmp_path, widths=(8, 16))
    assert found["parameters.baseline"].value == sum(p.numel() for p in tiny(width=8).parameters())
    assert found["macs.candidate"].value == 16 * 16 * 3 * 9 * 16 + 8 * 8 * 16 * 9 * 32 + 4 * 4 * 32 * 9 * 64 + 64 * 3
    size = (tmp_path / "0.onnx").stat().st_size
    assert found["size.baseline"].value == pytest.approx(size / 2**20)
    assert found["size.ratio"].value == pytest.approx((tmp_path / "1.onnx").stat().st_size / size)


def test_a_model_is_as_fast_as_itself_on_a_busy_machine(store: Store, tmp_path: Path, busy_machine: None) -> None:
    found = costs(store, tmp_path, widths=(96, 96), rounds=60)
    ratio = found["latency_median.ratio"]
    assert ratio.value == pytest.approx(1, abs=0.2)
    assert ratio.interval is not None
    assert ratio.interval[0] < 1.1
    assert ratio.interval[1] > 0.9
    assert found["latency_disturbed"].value is not None


def test_a_slower_model_is_seen_as_slower(store: Store, tmp_path: Path) -> None:
    found = costs(store, tmp_path, widths=(8, 64))
    interval = found["latency_median.ratio"].interval
    assert interval is not None
    assert interval[0] > 2
