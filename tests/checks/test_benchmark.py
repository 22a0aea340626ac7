"""Verdicts on planted samples, quality on planted logits, and a process that says why it cannot run."""

from pathlib import Path

import numpy as np
import pytest

from tests.backends.small import LABELS, PREPROCESSING, SIZE_PX, bundled, images_NCHW
from toolkit.bundle import Store
from toolkit.checks.benchmark import BenchmarkPlan
from toolkit.checks.benchmark_quality import Reference, quality
from toolkit.checks.benchmark_timing import compared, enough_quiet, kept_ms, quantile
from toolkit.checks.benchmark_worker import Task, Worker
from toolkit.data import load_pixels
from toolkit.data.shapes import shapes
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError

ROUNDS = 100


def planted(median_ms: float, seed: int) -> np.ndarray:
    """Skewed latencies (R,) around a median, as real ones are."""
    return median_ms * np.exp(np.random.default_rng(seed).gamma(2.0, 0.02, ROUNDS) - 0.034)


def test_verdicts_on_planted_samples() -> None:
    samples = {"first": planted(2, 0), "same": planted(2, 1), "quick": planted(1, 2), "slow": planted(2.4, 3)}
    found = compared(samples)
    assert {name: said for name, (_, _, said) in found.items()} == {
        "same": "no difference",
        "quick": "faster",
        "slow": "slower",
    }
    value, (low, high), _ = found["slow"]
    assert low <= value <= high
    assert value == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_latencies_twice_are_no_difference(seed: int) -> None:
    found = compared({"a": planted(1, 2 * seed), "b": planted(1, 2 * seed + 1)})
    assert found["b"][2] == "no difference"


def test_a_slow_second_of_the_machine_hits_both_and_widens_no_ratio() -> None:
    drift_R = np.where(np.arange(ROUNDS) < 40, 3.0, 1.0)
    value, (low, high), said = compared({"a": planted(1, 0) * drift_R, "b": planted(2, 1) * drift_R})["b"]
    assert said == "slower"
    assert value == pytest.approx(2, rel=0.1)
    assert high - low < 0.4


def test_disturbed_calls_are_dropped_and_a_busy_machine_is_told() -> None:
    wall_s_R, cpu_s_R = np.full(10, 0.01), np.full(10, 0.01)
    wall_s_R[3] = 0.5
    times_ms_R = kept_ms(wall_s_R, cpu_s_R)
    assert np.isnan(times_ms_R).tolist() == [index == 3 for index in range(10)]
    assert quantile(times_ms_R, 0.99)[0] == pytest.approx(10)
    assert enough_quiet(wall_s_R, cpu_s_R)
    cpu_s_R[:8] = np.linspace(0.001, 0.008, 8)
    assert not enough_quiet(wall_s_R, cpu_s_R)
    assert (~np.isnan(kept_ms(wall_s_R, cpu_s_R))).sum() == 5


def test_quality_counts_right_answers_and_finds_a_wrong_logit() -> None:
    pixels = load_pixels(shapes(30, size_px=SIZE_PX), PREPROCESSING)
    exact_NK = np.eye(3)[[LABELS.index(pixels.labels[int(target)]) for target in pixels.targets_N]]
    spoilt_NK = exact_NK.copy()
    spoilt_NK[0] = np.roll(spoilt_NK[0], 1) * 5
    found = {m.name: m for m in quality(spoilt_NK, pixels, LABELS, Reference(exact_NK, "exact"), "x[batch=1]")}
    assert found["accuracy.x[batch=1]"].value == pytest.approx(29 / 30)
    assert found["top1_agreement.x[batch=1]"].value == pytest.approx(29 / 30)
    assert found["max_error.x[batch=1]"].value == 5
    with pytest.raises(InputRefused, match="knows the labels a, b, c"):
        quality(exact_NK, pixels, ("a", "b", "c"), Reference(exact_NK, "exact"), "x[batch=1]")


@pytest.mark.parametrize("wrong", [{"runners": []}, {"batch": [0]}, {"rounds": 1}, {"threads": 0}])
def test_a_plan_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="benchmark: runners"):
        BenchmarkPlan(**wrong)


def test_runners_are_found_from_the_files_and_repeated_ones_numbered() -> None:
    assert BenchmarkPlan(runners=["onnxruntime", "eager", "onnxruntime"]).kinds() == {
        "onnxruntime": "onnx",
        "eager": "eager",
        "onnxruntime-2": "onnx",
    }
    with pytest.raises(UsageError, match=r"Unknown runner 'onxruntime'. Did you mean onnxruntime"):
        BenchmarkPlan(runners=["onxruntime"])


def test_a_process_that_cannot_run_its_runner_says_why(store: Store, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images_NCHW()[:2].astype(np.uint8))
    places = {"images": str(tmp_path / "images.npy"), "logits": str(tmp_path / "logits.npy")}
    task = Task(str(store.root), bundled(store).digest, "onnx", 1, 1, **places)
    with Worker(task) as worker:
        worker.ready()
        with pytest.raises(InputRefused, match=r"has no model\.onnx"):
            worker.ask("open")
        with pytest.raises(EnvironmentProblem, match=r"runner onnx \(batch 1\) ended with code"):
            worker.ask("open")
    assert worker.process.returncode is not None
