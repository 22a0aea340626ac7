"""The clock tells models apart and drops the calls that a neighbour spoilt."""

import gc
import time

import numpy as np
import pytest

from toolkit.backends import measure_latency
from toolkit.errors import UsageError

IMAGE_1CHW = np.zeros((1, 3, 8, 8), np.float32)


def busy(milliseconds: float):
    """A runner that computes for so long, by its own processor time."""

    def run(_images_NCHW: np.ndarray) -> None:
        end = time.process_time() + milliseconds / 1e3
        while time.process_time() < end:
            pass

    return run


def test_the_slower_runner_measures_slower() -> None:
    latency = measure_latency({"fast": busy(1), "slow": busy(3)}, IMAGE_1CHW, rounds=20, warmup=1)
    assert latency.num_calls == 40
    assert sum(len(samples) for samples in latency.values()) == 40 - latency.num_dropped
    assert 0.9 < np.median(latency["fast"]) < np.median(latency["slow"])
    assert np.median(latency["slow"]) >= 2.7
    assert set(latency) == {"fast", "slow"}


def test_calls_without_the_processor_are_dropped_and_only_those() -> None:
    calls = iter(range(10_000))

    def disturbed(images_NCHW: np.ndarray) -> None:
        busy(2)(images_NCHW)
        if next(calls) % 4 == 0:
            time.sleep(0.02)  # what waiting for a neighbour looks like: wall time without processor time

    latency = measure_latency({"model": disturbed}, IMAGE_1CHW, rounds=40, warmup=0)
    assert latency.num_dropped >= 10
    assert np.quantile(latency["model"], 0.9) < 20  # a quarter were disturbed; one may be this machine's own
    assert 0 < latency.cpu_share["model"] <= 1.1


def test_where_no_call_is_quiet_more_are_tried_and_then_the_quietest_kept() -> None:
    calls = []

    def waiting(_images_NCHW: np.ndarray) -> None:
        calls.append(None)
        time.sleep(0.001)

    latency = measure_latency({"model": waiting}, IMAGE_1CHW, rounds=10, warmup=0, most_blocks=3)
    assert latency.contended
    assert len(calls) == latency.num_calls == 30
    assert 5 <= len(latency["model"]) <= 10


def test_runners_are_warmed_up_and_the_collector_is_on_again() -> None:
    calls = []
    measure_latency({"model": lambda _: calls.append(gc.isenabled())}, IMAGE_1CHW, rounds=3, warmup=2)
    assert calls == [True, True, False, False, False]
    assert gc.isenabled()


@pytest.mark.parametrize(("runners", "rounds"), [({}, 5), ({"model": busy(1)}, 0)])
def test_nothing_to_time_is_a_usage_error(runners: dict, rounds: int) -> None:
    with pytest.raises(UsageError, match="latency needs"):
        measure_latency(runners, IMAGE_1CHW, rounds=rounds)
