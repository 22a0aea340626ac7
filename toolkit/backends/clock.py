"""Timing models against each other on a machine that others use too.

Rounds interleave the models, in a new order each, so that a busy neighbour slows all of them; a round in which the process
got less of a processor than it asked for says something about the neighbour and is dropped. What is left is a sample per
model and round, for medians, quantiles and intervals of ratios.

Legend: N images, C channels, H height, W width, R rounds.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.errors import UsageError

LEAST_CPU_SHARE = 0.9
LEAST_KEPT = 0.5


@dataclass(frozen=True, eq=False)
class Latency(Mapping[str, np.ndarray]):
    """Milliseconds a call by runner name, one for each round kept (the same rounds for every runner).

    `cpu_share` is processor time over wall time of the kept rounds (1: one core, undisturbed), by runner. `num_dropped`
    rounds were disturbed; `contended` says that so many were that undisturbed ones had to be told by rank alone.
    """

    samples_ms: Mapping[str, np.ndarray]
    cpu_share: Mapping[str, float]
    num_rounds: int
    num_dropped: int
    contended: bool

    def __getitem__(self, name: str) -> np.ndarray:
        return self.samples_ms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.samples_ms)

    def __len__(self) -> int:
        return len(self.samples_ms)


def measure_latency(
    runners: Mapping[str, Callable[[np.ndarray], Any]],
    images_NCHW: np.ndarray,
    *,
    rounds: int = 100,
    warmup: int = 5,
    seed: int = 0,
) -> Latency:
    """Time each runner on the batch `images_NCHW` (float32 pixels), once a round, after `warmup` calls each.

    Runners should use one thread, for the processor's share tells a disturbed round only then. Rounds are dropped when any
    runner got less than 90% of a core; never more than half of them. Raises `UsageError` for no runner or no round.
    """
    if not runners or rounds < 1 or warmup < 0:
        raise UsageError(f"latency needs runners, rounds >= 1 and warmup >= 0; got {len(runners)}, {rounds} and {warmup}.")
    names = list(runners)
    for name in names:
        for _ in range(warmup):
            runners[name](images_NCHW)
    wall_s, cpu_s = _timed_rounds(runners, images_NCHW, rounds, seed)
    share_R = (cpu_s / np.maximum(wall_s, 1e-9)).min(axis=0)
    quiet_R = share_R >= LEAST_CPU_SHARE
    contended = quiet_R.mean() < LEAST_KEPT
    if contended:
        quiet_R = share_R >= np.quantile(share_R, 1 - LEAST_KEPT)
    shares = (cpu_s[:, quiet_R].sum(axis=1) / wall_s[:, quiet_R].sum(axis=1)).tolist()
    return Latency(
        samples_ms={name: 1e3 * wall_s[i, quiet_R] for i, name in enumerate(names)},
        cpu_share=dict(zip(names, shares, strict=True)),
        num_rounds=rounds,
        num_dropped=int((~quiet_R).sum()),
        contended=bool(contended),
    )


def _timed_rounds(
    runners: Mapping[str, Callable[[np.ndarray], Any]], images_NCHW: np.ndarray, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Wall and processor seconds, each (runners, R), with the garbage collector held."""
    functions = list(runners.values())
    wall_s, cpu_s = np.zeros((2, len(functions), rounds))
    random = np.random.default_rng(seed)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            for i in random.permutation(len(functions)):
                cpu, wall = time.process_time(), time.perf_counter()
                functions[i](images_NCHW)
                wall_s[i, r], cpu_s[i, r] = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        if was_enabled:
            gc.enable()
    return wall_s, cpu_s
