"""A latency claim needs a difference: a model against itself shows none, a slower one is called slower."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.backends.small import images_NCHW, written
from toolkit.backends import OnnxRunner
from toolkit.bundle import Measurement, Report
from toolkit.checks.latency import difference, latency
from toolkit.errors import UsageError

IMAGE_1CHW = images_NCHW()[:1]


def busy(milliseconds: float) -> Callable[[np.ndarray], None]:
    def run(_images_NCHW: np.ndarray) -> None:
        end = time.process_time() + milliseconds / 1e3
        while time.process_time() < end:
            pass

    return run


def test_a_slower_model_is_called_slower_and_a_faster_one_faster() -> None:
    report = latency({"old": busy(0.6), "new": busy(0.2), "big": busy(1.8)}, IMAGE_1CHW, baseline="old", subjects=("ab" * 32,))
    assert report.details["comparison"] == {"new": "faster", "big": "slower"}
    ratio = next(m for m in report.measurements if m.name == "latency_median.ratio[runner=big]")
    assert ratio.value is not None
    assert ratio.interval is not None
    assert 2 < ratio.value < 6
    assert ratio.interval[0] <= ratio.value <= ratio.interval[1]
    assert report.value("latency_median[runner=old]") <= report.value("latency_p95[runner=old]")
    assert Report.from_json(report.to_json(), "report").details == report.details


def test_a_model_against_itself_is_no_difference(tmp_path: Path) -> None:
    graph, _ = written(tmp_path)
    verdicts = [
        latency(
            {side: OnnxRunner(graph, threads=1) for side in ("a", "b")},
            IMAGE_1CHW,
            baseline="a",
            subjects=("ab" * 32,),
            seed=seed,
        ).details["comparison"]["b"]
        for seed in range(5)
    ]
    assert verdicts.count("no difference") >= 3  # 95% intervals on a machine that others use


def test_less_than_anyone_would_notice_is_no_difference() -> None:
    assert difference(Measurement("ratio", 1.01, interval=(1.005, 1.015))) == "no difference"
    assert difference(Measurement("ratio", 1.5, interval=(0.9, 2.0))) == "no difference"
    assert difference(Measurement("ratio", 0.5, interval=(0.4, 0.6))) == "faster"


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(UsageError, match="no runner 'old'"):
        latency({"new": busy(1)}, IMAGE_1CHW, baseline="old", subjects=("ab" * 32,))
