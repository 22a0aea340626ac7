"""A pruned model is an improvement only where the clock says so."""

from pathlib import Path

import numpy as np
import pytest

from tests.checks.planted import stored, trained
from toolkit.bundle import Bundle, Measurement, Report, Store
from toolkit.checks.pruning_report import pruning_report
from toolkit.pruning import Target
from toolkit.release.pruning_page import render_pruning

IMAGE = np.full((1, 3, 32, 32), 128, np.float32)
MOMENTS = ("baseline", "after_surgery", "after_batchnorm", "candidate")
STORY = {moment: {"accuracy": 0.9 - 0.01 * i, "loss": 0.1} for i, moment in enumerate(MOMENTS)}


def bundle(store: Store, tmp_path: Path, *, width: int) -> Bundle:
    return stored(store, trained(num_epochs=0, width=width), width=width, graph=tmp_path / f"{width}.onnx")


def report(parent: Bundle, child: Bundle, *, target: Target = Target(macs=0.5)) -> Report:  # noqa: B008 (frozen)
    details = {"channels": {"conv": [64, 8]}, "round_to": 8}
    images_NCHW = np.repeat(IMAGE, target.batch, axis=0)
    return pruning_report(parent, child, images_NCHW=images_NCHW, story=STORY, details=details, target=target)


def test_the_verdict_follows_measured_latency(store: Store, tmp_path: Path) -> None:
    narrow, wide = (bundle(store, tmp_path, width=width) for width in (8, 64))
    better, worse = report(wide, narrow), report(narrow, wide)
    assert (better.verdict, worse.verdict) == ("pass", "fail")
    assert "✓" in render_pruning(better)
    assert "✗" in render_pruning(worse)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.6, 0.9), "pass"), ((0.9, 1.1), "undecided"), ((0.96, 0.995), "undecided"), ((1.0, 1.2), "fail")],
)
def test_a_tie_or_a_gain_nobody_notices_is_no_improvement(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: tuple[float, float], verdict: str
) -> None:
    ratio = Measurement("latency_median.ratio", sum(interval) / 2, interval=interval)
    monkeypatch.setattr("toolkit.checks.pruning_report.cost_measurements", lambda *args, **kwargs: [ratio])
    net = bundle(store, tmp_path, width=8)
    assert report(net, net).verdict == verdict


@pytest.mark.parametrize(("allowed", "verdict"), [(0.05, "pass"), (0.02, "fail")])
def test_the_accuracy_asked_for_is_held_after_recovery(store: Store, tmp_path: Path, allowed: float, verdict: str) -> None:
    narrow, wide = (bundle(store, tmp_path, width=width) for width in (8, 64))
    found = report(wide, narrow, target=Target(accuracy_drop=allowed))
    assert found.value("accuracy_goal.drop[split=val]") == pytest.approx(0.03)
    assert found.verdict == verdict


def test_latency_is_that_of_the_batch_and_the_threads_asked_for(store: Store, tmp_path: Path) -> None:
    narrow, wide = (bundle(store, tmp_path, width=width) for width in (8, 64))
    one, many = report(wide, narrow), report(wide, narrow, target=Target(macs=0.5, batch=16, threads=2))
    assert many.value("latency_median.baseline") > 3 * one.value("latency_median.baseline")
    assert many.details["latency"] == {"batch": 16, "threads": 2, "device": "cpu", "conditions": "batch 16, 2 threads"}
    assert "batch 16, 2 threads, in turns" in render_pruning(many)
    assert "batch 1, one thread, in turns" in render_pruning(one)
