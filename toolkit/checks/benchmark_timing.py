"""What the calls of interleaved runners let one say: when they are warm, which calls count, quantiles, ratios, verdicts.

A launch (`benchmark_launch`) gives one ratio of medians, and the interval of a ratio is Student's t over the logarithms of the
launches' (Kalibera and Jones, "Rigorous benchmarking in reasonable time", 2013): resampling the calls of a single pair of
processes gave intervals that left out 1 in 10 to 40% of the comparisons of a program with itself. What is nearer to 1 than
`NOTICEABLE` is called no difference, however narrow its interval.

Legend: R rounds, B resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from toolkit.backends.clock import LEAST_CPU_SHARE, LEAST_QUIET

NUM_RESAMPLES = 500
NOTICEABLE = 0.02
QUANTILES = {"latency_median": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}

STEADY, NUM_WINDOWS = 0.05, 3
LEAST_WINDOW_CALLS, LEAST_WINDOW_S = 5, 0.05
MOST_WARM_S = 10.0

Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "no difference"]


def warm_up(call: Callable[[], float], *, most_s: float = MOST_WARM_S) -> tuple[int, bool]:
    """Call (it returns its processor seconds) until the last three windows' medians lie within 5% of each other.

    A window is at least 5 calls and 50 ms, so that a fast model is watched for longer than a processor takes to clock up.
    Processor time, because a busy neighbour makes no call colder.
    Returns the number of calls, and whether it became steady within `most_s` seconds of calling.
    """
    medians_s: list[float] = []
    window_s: list[float] = []
    num_calls, spent_s = 0, 0.0
    while spent_s < most_s:
        window_s.append(call())
        num_calls, spent_s = num_calls + 1, spent_s + window_s[-1]
        if len(window_s) < LEAST_WINDOW_CALLS or sum(window_s) < LEAST_WINDOW_S:
            continue
        medians_s = [*medians_s, float(np.median(window_s))][-NUM_WINDOWS:]
        window_s = []
        if len(medians_s) == NUM_WINDOWS and max(medians_s) <= (1 + STEADY) * min(medians_s):
            return num_calls, True
    return num_calls, False


def enough_quiet(wall_s_R: np.ndarray, cpu_s_R: np.ndarray) -> bool:
    """Whether at least half the calls had a core to themselves."""
    return bool((_share(wall_s_R, cpu_s_R) >= LEAST_CPU_SHARE).mean() >= LEAST_QUIET)


def kept_ms(wall_s_R: np.ndarray, cpu_s_R: np.ndarray) -> np.ndarray:
    """Milliseconds of each call; NaN where it got less than a core.

    Where most calls did, the quieter half counts with its processor time: a call longer than the scheduler's slice hardly ever
    goes undisturbed on a busy machine, a short one does, and their wall times would tell of that and not of the models.
    """
    share_R = _share(wall_s_R, cpu_s_R)
    if enough_quiet(wall_s_R, cpu_s_R):
        return np.where(share_R >= LEAST_CPU_SHARE, 1e3 * wall_s_R, np.nan)
    bound = np.sort(share_R)[-max(1, round(LEAST_QUIET * len(share_R)))]
    return np.where(share_R >= bound, 1e3 * cpu_s_R, np.nan)


def quantile(samples_ms: Sequence[np.ndarray], share: float, *, seed: int = 0) -> tuple[float, Interval]:
    """A quantile of the calls of all launches, with the interval of a bootstrap over launches and over calls within them."""
    random = np.random.default_rng(seed)
    drawn_B = [np.quantile(_resampled(samples_ms, random), share) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(drawn_B, [0.025, 0.975])
    return float(np.quantile(np.concatenate(samples_ms), share)), (float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """A runner's median latency as a share of the first's, the interval of that ratio, and what may be said of it."""

    ratio: float
    interval: Interval
    verdict: Verdict


def compared(samples_ms: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Comparison]:
    """Each later runner against the first. Of every runner the calls (R) of each launch, NaN where disturbed.

    There must be two launches or more, the same number of each runner, and a call that counts in each.
    """
    medians_ms = {name: np.array([np.nanmedian(times_ms_R) for times_ms_R in own]) for name, own in samples_ms.items()}
    first, *others = medians_ms
    found = {}
    for name in others:
        logs = np.log(medians_ms[name] / medians_ms[first])
        half = stdtrit(len(logs) - 1, 0.975) * np.std(logs, ddof=1) / np.sqrt(len(logs))
        ratio, low, high = (float(value) for value in np.exp(np.mean(logs) + np.array([0, -half, half])))
        found[name] = Comparison(ratio, (low, high), verdict(ratio, (low, high)))
    return found


def verdict(ratio: float, interval: Interval) -> Verdict:
    """`faster` or `slower` only where the whole interval is on one side of 1 and the ratio is noticeably off it."""
    low, high = interval
    if low <= 1 <= high or abs(ratio - 1) < NOTICEABLE:
        return "no difference"
    return "faster" if ratio < 1 else "slower"


def _resampled(samples_ms: Sequence[np.ndarray], random: np.random.Generator) -> np.ndarray:
    drawn = [samples_ms[index] for index in random.integers(len(samples_ms), size=len(samples_ms))]
    return np.concatenate([own[random.integers(len(own), size=len(own))] for own in drawn])


def _share(wall_s_R: np.ndarray, cpu_s_R: np.ndarray) -> np.ndarray:
    return cpu_s_R / np.maximum(wall_s_R, 1e-9)
