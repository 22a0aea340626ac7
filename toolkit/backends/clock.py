"""Timing models against each other on a machine that others use too.

Rounds interleave the models, in a new order each, so that a busy neighbour slows all of them alike. A call during which the
process got less than a core says something about the neighbour and is dropped, by itself: next to the scheduler's slice of
some milliseconds most calls of a fast model go undisturbed even where hardly a whole round does. What is left is a sample a
model, for medians, quantiles and intervals of ratios.

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
LEAST_QUIET = 0.5


@dataclass(frozen=True, eq=False)
class Latency(Mapping[str, np.ndarray]):
    """Milliseconds a call by runner name, of the calls that were kept; runners may differ in how many.

    `cpu_share` is processor time over wall time of the kept calls (1: a core to itself), by runner. `num_dropped` calls of
    `num_calls` were disturbed; `contended` says that a runner had so few quiet calls that its quietest were kept instead.
    """

    samples_ms: Mapping[str, np.ndarray]
    cpu_share: Mapping[str, float]
    num_calls: int
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
    most_blocks: int = 1,
    seed: int = 0,
) -> Latency:
    """Time each runner on the batch `images_NCHW` (float32 pixels), once a round, after `warmup` calls each.

    Runners should use one thread: only then does the processor's share tell a disturbed call. `most_blocks` times the rounds
    are run where a runner has quiet calls for less than half of them; if that does not help, its quietest calls are kept.
    Raises `UsageError` for no runner or no round.
    """
    if not runners or rounds < 1 or warmup < 0 or most_blocks < 1:
        raise UsageError(
            f"latency needs runners, rounds >= 1, warmup >= 0 and most_blocks >= 1; got {len(runners)} runners, {rounds}, "
            f"{warmup} and {most_blocks}."
        )
    for run in runners.values():
        for _ in range(warmup):
            run(images_NCHW)
    least = max(1, round(LEAST_QUIET * rounds))
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    for block in range(most_blocks):
        blocks.append(_timed_rounds(runners, images_NCHW, rounds, seed + block))
        wall_s, cpu_s = (np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
        share = cpu_s / np.maximum(wall_s, 1e-9)
        quiet = share >= LEAST_CPU_SHARE
        if quiet.sum(axis=1).min() >= least:
            break
    contended = quiet.sum(axis=1).min() < least
    bound = np.minimum(LEAST_CPU_SHARE, np.sort(share, axis=1)[:, -least])
    kept = share >= bound[:, None]
    names = list(runners)
    return Latency(
        samples_ms={name: 1e3 * wall_s[i, kept[i]] for i, name in enumerate(names)},
        cpu_share={name: float(cpu_s[i, kept[i]].sum() / wall_s[i, kept[i]].sum()) for i, name in enumerate(names)},
        num_calls=int(kept.size),
        num_dropped=int((~kept).sum()),
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
