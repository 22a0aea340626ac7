"""What the calls of interleaved runners let one say: which calls count, quantiles, and ratios with an interval.

The intervals of a ratio resample whole rounds, because what slows a machine for a second slows both runners in it. Two
processes of one program on one machine still differ by a percent or so (where their memory lies), and no number of rounds
shows that: a ratio nearer to 1 than `NOTICEABLE` is called no difference, however narrow its interval.

Legend: R rounds, B resamples.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from toolkit.backends.clock import LEAST_CPU_SHARE, LEAST_QUIET

NUM_RESAMPLES = 1000
NOTICEABLE = 0.05
QUANTILES = {"latency_median": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}

Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "no difference"]


def enough_quiet(wall_s_R: np.ndarray, cpu_s_R: np.ndarray) -> bool:
    """Whether at least half the calls had a core to themselves."""
    return bool((_share(wall_s_R, cpu_s_R) >= LEAST_CPU_SHARE).mean() >= LEAST_QUIET)


def kept_ms(wall_s_R: np.ndarray, cpu_s_R: np.ndarray) -> np.ndarray:
    """Milliseconds of each call; NaN where it got less than a core (or, if most did, where it was not among the quietest)."""
    share_R = _share(wall_s_R, cpu_s_R)
    least = max(1, round(LEAST_QUIET * len(share_R)))
    bound = min(LEAST_CPU_SHARE, np.sort(share_R)[-least])
    return np.where(share_R >= bound, 1e3 * wall_s_R, np.nan)


def quantile(times_ms_R: np.ndarray, share: float, *, seed: int = 0) -> tuple[float, Interval]:
    """A quantile of the calls that were kept, with its bootstrap interval."""
    kept_N = times_ms_R[~np.isnan(times_ms_R)]
    drawn_BN = np.random.default_rng(seed).integers(len(kept_N), size=(NUM_RESAMPLES, len(kept_N)))
    low, high = np.quantile(np.quantile(kept_N[drawn_BN], share, axis=1), [0.025, 0.975])
    return float(np.quantile(kept_N, share)), (float(low), float(high))


def ratio(times_ms_R: np.ndarray, first_ms_R: np.ndarray, *, seed: int = 0) -> tuple[float, Interval]:
    """The ratio of median latencies to the first runner's, with the interval of a bootstrap over rounds."""
    drawn_BR = np.random.default_rng(seed).integers(len(times_ms_R), size=(NUM_RESAMPLES, len(times_ms_R)))
    drawn_B = np.nanmedian(times_ms_R[drawn_BR], axis=1) / np.nanmedian(first_ms_R[drawn_BR], axis=1)
    low, high = np.quantile(drawn_B, [0.025, 0.975])
    return float(np.nanmedian(times_ms_R) / np.nanmedian(first_ms_R)), (float(low), float(high))


def compared(samples_ms: Mapping[str, np.ndarray], *, seed: int = 0) -> dict[str, tuple[float, Interval, Verdict]]:
    """Each later runner against the first: ratio, interval, verdict. The samples of all lie round by round (R)."""
    first, *others = samples_ms
    found = {name: ratio(samples_ms[name], samples_ms[first], seed=seed) for name in others}
    return {name: (value, interval, verdict(value, interval)) for name, (value, interval) in found.items()}


def verdict(value: float, interval: Interval) -> Verdict:
    """`faster` or `slower` only where the whole interval is on one side of 1 and the ratio is noticeably off it."""
    low, high = interval
    if low <= 1 <= high or abs(value - 1) < NOTICEABLE:
        return "no difference"
    return "faster" if value < 1 else "slower"


def _share(wall_s_R: np.ndarray, cpu_s_R: np.ndarray) -> np.ndarray:
    return cpu_s_R / np.maximum(wall_s_R, 1e-9)
