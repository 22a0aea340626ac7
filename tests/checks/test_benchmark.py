"""Verdicts on planted samples, quality on planted logits, and a process that says why it cannot run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backends.small import LABELS, PREPROCESSING, SIZE_PX, bundled, images_NCHW, small, written
from toolkit.bundle import GRAPHS, Bundle, Store
from toolkit.checks.benchmark_plan import BenchmarkPlan, Timing, kind_and_device
from toolkit.checks.benchmark_quality import Reference, exact_reference, quality
from toolkit.checks.benchmark_timing import compared, enough_quiet, kept_ms, quantile, warm_up
from toolkit.checks.benchmark_worker import Task, Worker
from toolkit.data import load_pixels
from toolkit.data.shapes import shapes
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError

ROUNDS, LAUNCHES = 20, 5


def planted(median_ms: float, seed: int, luck: float = 0.02) -> list[np.ndarray]:
    """Skewed latencies (R,) of each launch around a median, as real ones are; every process has `luck` of its own."""
    random = np.random.default_rng(seed)
    medians_ms = median_ms * np.exp(random.normal(0, luck, LAUNCHES))
    return [median * np.exp(random.gamma(2.0, 0.02, ROUNDS) - 0.034) for median in medians_ms]


def test_verdicts_on_planted_samples() -> None:
    samples = {"first": planted(2, 0), "same": planted(2, 1), "quick": planted(1, 2), "slow": planted(2.4, 3)}
    found = compared(samples)
    assert {name: one.verdict for name, one in found.items()} == {"same": "no difference", "quick": "faster", "slow": "slower"}
    low, high = found["slow"].interval
    assert low <= found["slow"].ratio <= high
    assert found["slow"].ratio == pytest.approx(1.2, abs=0.05)


def test_a_program_against_itself_is_rarely_a_difference_though_each_process_has_its_luck() -> None:
    found = [compared({"a": planted(1, 2 * seed), "b": planted(1, 2 * seed + 1)})["b"] for seed in range(400)]
    outside = np.mean([not one.interval[0] <= 1 <= one.interval[1] for one in found])
    assert 0.02 < outside < 0.09  # 5% by construction: the interval is neither too narrow nor too wide
    assert np.mean([one.verdict != "no difference" for one in found]) < 0.07


def test_a_real_difference_of_a_tenth_is_found() -> None:
    found = [compared({"a": planted(1, 2 * seed), "b": planted(1.1, 2 * seed + 1)})["b"].verdict for seed in range(100)]
    assert found.count("slower") > 90


def test_what_nobody_would_notice_is_no_difference_however_sure() -> None:
    found = compared({"a": planted(1, 0, luck=0), "b": [times_ms * 1.01 for times_ms in planted(1, 0, luck=0)]})["b"]
    assert found.interval[0] > 1
    assert found.verdict == "no difference"


def test_a_slow_second_of_the_machine_hits_both_and_widens_no_ratio() -> None:
    drift = np.array([3.0, 3.0, 1.0, 1.0, 1.0])
    first = [times_ms * slow for times_ms, slow in zip(planted(1, 0, luck=0), drift, strict=True)]
    second = [times_ms * slow for times_ms, slow in zip(planted(2, 1, luck=0), drift, strict=True)]
    found = compared({"a": first, "b": second})["b"]
    assert found.verdict == "slower"
    assert found.ratio == pytest.approx(2, rel=0.1)
    assert found.interval[1] - found.interval[0] < 0.4


def test_warming_up_goes_on_until_calls_stop_getting_faster() -> None:
    times_s = iter([0.001 * (1 + 9 * 0.99**call) for call in range(5000)])
    num_calls, steady = warm_up(lambda: next(times_s))
    assert steady
    assert 0.001 * (1 + 9 * 0.99**num_calls) < 0.00125  # from 10 ms down to near its end at 1 ms


def test_warming_up_watches_a_fast_model_for_a_while_and_gives_up_on_one_that_never_settles() -> None:
    num_calls, steady = warm_up(lambda: 0.0001)
    assert steady
    assert num_calls * 0.0001 >= 3 * 0.05 - 1e-9
    falling_s = iter([0.1 * 0.98**call for call in range(10_000)])
    assert warm_up(lambda: next(falling_s), most_s=2.0)[1] is False


def test_disturbed_calls_are_dropped_and_a_busy_machine_is_told() -> None:
    wall_s_R, cpu_s_R = np.full(10, 0.01), np.full(10, 0.01)
    wall_s_R[3] = 0.5
    times_ms_R = kept_ms(wall_s_R, cpu_s_R)
    assert np.isnan(times_ms_R).tolist() == [index == 3 for index in range(10)]
    assert quantile([times_ms_R[~np.isnan(times_ms_R)]], 0.99)[0] == pytest.approx(10)
    assert enough_quiet(wall_s_R, cpu_s_R)
    cpu_s_R[:8] = np.linspace(0.001, 0.008, 8)
    assert not enough_quiet(wall_s_R, cpu_s_R)
    kept = kept_ms(wall_s_R, cpu_s_R)
    assert kept[~np.isnan(kept)].tolist() == pytest.approx([6, 7, 8, 10, 10])  # processor time: wall time is the neighbour's


def test_a_busy_machine_does_not_make_a_slow_model_look_slower_than_it_is() -> None:
    quick, slow = planted(1, 0, luck=0), planted(2, 1, luck=0)
    waited = [kept_ms(times_ms * 5e-3, times_ms * 1e-3) for times_ms in slow]  # four fifths of each call it waited for a core
    assert compared({"quick": quick, "slow": waited})["slow"].ratio == pytest.approx(2, rel=0.1)


def test_errors_are_told_in_floors_of_float32() -> None:
    pixels = load_pixels(shapes(30, size_px=SIZE_PX), PREPROCESSING)
    deployed = small()
    reference = exact_reference(deployed.net, PREPROCESSING, pixels)
    images_NCHW = pixels.images_NCHW.float()
    with torch.inference_mode():
        own_NK, half_NK = deployed(images_NCHW).double().numpy(), deployed(images_NCHW).half().double().numpy()
    floors = [
        {m.name: m.value for m in quality(logits_NK, pixels, LABELS, reference, "x[batch=1]")}["floors.x[batch=1]"] or 0.0
        for logits_NK in (own_NK, half_NK)
    ]
    assert floors[0] < 8
    assert floors[1] > 50


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


@pytest.mark.parametrize("wrong", [{"runners": []}, {"batch": [0]}, {"precision": []}])
def test_a_plan_of_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="benchmark: runners"):
        BenchmarkPlan(**wrong)


@pytest.mark.parametrize("wrong", [{"rounds": 1}, {"rounds": 9}, {"threads": 0}, {"launches": 1}])
def test_timing_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=r"benchmark: timing\.rounds"):
        Timing(**wrong)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Unknown runner 'onxruntime'. Did you mean onnxruntime"):
        BenchmarkPlan(runners=["onxruntime"])
    with pytest.raises(UsageError, match=r"Unknown precision 'fp23'. Did you mean fp32"):
        BenchmarkPlan(precision=["fp23"])
    assert kind_and_device("onnxruntime-tensorrt") == ("onnx", "tensorrt")
    assert kind_and_device("eager") == ("eager", "cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small net with graphs in fp32 and, by name, in int8."""
    folder = tmp_path_factory.mktemp("exported")
    store, (graph, _) = Store(folder / "store"), written(folder)
    plain = bundled(store)
    return store.add(plain.manifest, weights=plain.weights(), files={GRAPHS["fp32"]: graph, GRAPHS["int8"]: graph})


def test_each_runner_meets_each_precision_it_has_and_repeated_ones_are_numbered(exported: Bundle) -> None:
    plan = BenchmarkPlan(runners=["onnxruntime", "eager", "onnxruntime"], precision=["fp32", "int8"])
    entries, left_out = plan.entries(exported)
    assert [(entry.name, entry.kind, entry.precision) for entry in entries] == [
        ("onnxruntime", "onnx", "fp32"),
        ("eager", "eager", "fp32"),
        ("onnxruntime-2", "onnx", "fp32"),
        ("onnxruntime-int8", "onnx", "int8"),
        ("onnxruntime-int8-2", "onnx", "int8"),
    ]
    (reason,) = left_out
    assert reason.startswith("eager in int8: torch runs a module in fp32, bf16 or fp16")


def test_a_precision_no_runner_has_and_one_the_bundle_lacks_are_refused(exported: Bundle) -> None:
    with pytest.raises(UsageError, match="no runner of eager has precision int8"):
        BenchmarkPlan(runners=["eager"], precision=["fp32", "int8"]).entries(exported)
    with pytest.raises(InputRefused, match=r"no model\.fp16\.onnx.*it holds fp32, int8.*'precisions=\[fp32,int8,fp16\]'"):
        BenchmarkPlan(runners=["onnxruntime"], precision=["fp16"]).entries(exported)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("runner", ["eager-cuda", "compile-cuda", "onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_runner_for_a_card_that_is_not_there_is_refused_before_anything_runs(exported: Bundle, runner: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"no CUDA device is usable here|has no (CUDA|Tensorrt)ExecutionProvider"):
        BenchmarkPlan(runners=["eager", runner]).entries(exported)


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
