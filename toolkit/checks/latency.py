"""Is one model faster than another? Medians and tails of interleaved calls, each with an interval, against one of them.

Batch 1 and one thread, because that is where a served model's latency is felt and where a disturbed call can be told. The
answer may be that there is no difference: an interval that holds 1, or a ratio nearer to 1 than anyone would notice.

Legend: N images, C channels, H height, W width, B resamples.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from toolkit.backends import Latency, measure_latency
from toolkit.bundle import Measurement, Report, environment
from toolkit.errors import UsageError

NUM_RESAMPLES = 2000
QUANTILES = {"latency_median": 0.5, "latency_p95": 0.95}
NOTICEABLE = 0.02

Interval = tuple[float, float]


def latency(
    runners: Mapping[str, Callable[[np.ndarray], Any]],
    images_NCHW: np.ndarray,
    *,
    baseline: str,
    subjects: tuple[str, ...],
    rounds: int = 100,
    seed: int = 0,
) -> Report:
    """Time `runners` in turns on one batch (float32 pixels) and compare each with the runner named `baseline`.

    The report `latency` about the bundles `subjects` (digests) has no limits; `details.comparison` says of each runner
    whether it is `faster`, `slower` or of `no difference`. Raises `UsageError` when no runner has the baseline's name.
    """
    if baseline not in runners:
        raise UsageError(f"latency has no runner '{baseline}' to compare with; it has {', '.join(runners)}.")
    samples = measure_latency(runners, images_NCHW, rounds=rounds, most_blocks=4, seed=seed)
    measurements = compared(samples, baseline=baseline, seed=seed)
    details = {
        "baseline": baseline,
        "batch": len(images_NCHW),
        "cpu_share": dict(samples.cpu_share),
        "num_calls": samples.num_calls,
        "num_dropped": samples.num_dropped,
        "contended": samples.contended,
        "comparison": {
            name: difference(next(m for m in measurements if m.name == f"latency_median.ratio[runner={name}]"))
            for name in runners
            if name != baseline
        },
    }
    return Report("latency", subjects, "pass", tuple(measurements), details, environment())


def compared(samples: Latency, *, baseline: str, seed: int = 0) -> list[Measurement]:
    """Median and 95th percentile of each runner in ms, and the ratio of each to `baseline`'s, with bootstrap intervals."""
    measurements = []
    for statistic, quantile in QUANTILES.items():
        drawn = {
            name: _resampled(times_ms, quantile, seed=seed + index) for index, (name, times_ms) in enumerate(samples.items())
        }
        for name, times_ms in samples.items():
            value, n = float(np.quantile(times_ms, quantile)), len(times_ms)
            measurements.append(Measurement(f"{statistic}[runner={name}]", value, "ms", _interval(drawn[name]), n))
            if name != baseline:
                ratio = value / float(np.quantile(samples[baseline], quantile))
                interval = _interval(drawn[name] / drawn[baseline])
                n = min(n, len(samples[baseline]))
                measurements.append(Measurement(f"{statistic}.ratio[runner={name}]", ratio, interval=interval, n=n))
    return measurements


def difference(ratio: Measurement) -> Literal["faster", "slower", "no difference"]:
    """What a ratio of latencies with its interval lets one say; less than 2% either way is no difference."""
    assert ratio.value is not None
    assert ratio.interval is not None
    low, high = ratio.interval
    if low <= 1 <= high or abs(ratio.value - 1) < NOTICEABLE:
        return "no difference"
    return "faster" if ratio.value < 1 else "slower"


def _resampled(times_N: np.ndarray, quantile: float, *, seed: int) -> np.ndarray:
    drawn_BN = np.random.default_rng(seed).integers(len(times_N), size=(NUM_RESAMPLES, len(times_N)))
    return np.quantile(times_N[drawn_BN], quantile, axis=1)


def _interval(values_B: np.ndarray) -> Interval:
    low, high = np.quantile(values_B, [0.025, 0.975])
    return float(low), float(high)
