"""Latency, measured so that a neighbour's load does not become a claim.

Runners take turns within each round, so whatever slows the machine slows all of them alike; a round in which the process
got less than its share of the processor (processor time against wall time) is dropped.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np

Call = Callable[[np.ndarray], np.ndarray]

MIN_CPU_SHARE = 0.9
MIN_KEPT_SHARE = 0.5


def measure_latency(
    runners: Mapping[str, Call], images_NCHW: np.ndarray, *, rounds: int = 50, warmup: int = 5
) -> dict[str, list[float]]:
    """Milliseconds a call for each runner, one entry per kept round, over `rounds` interleaved rounds after `warmup` calls.

    A round counts when each of its calls had the processor for at least 90% of the time; when fewer than half of the
    rounds count, the half with the least contention is kept. The order of the runners alternates from round to round.
    """
    for run in runners.values():
        for _ in range(warmup):
            run(images_NCHW)
    names = list(runners)
    times: list[dict[str, float]] = []
    shares: list[float] = []
    for index in range(rounds):
        order = names if index % 2 == 0 else names[::-1]
        timed = {name: _timed(runners[name], images_NCHW) for name in order}
        times.append({name: wall for name, (wall, _) in timed.items()})
        shares.append(min(share for _, share in timed.values()))
    kept = [index for index, share in enumerate(shares) if share >= MIN_CPU_SHARE]
    if len(kept) < MIN_KEPT_SHARE * rounds:
        kept = sorted(np.argsort(shares)[::-1][: max(1, round(MIN_KEPT_SHARE * rounds))].tolist())
    return {name: [times[index][name] for index in kept] for name in names}


def _timed(run: Call, images_NCHW: np.ndarray) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    run(images_NCHW)
    elapsed = time.perf_counter() - wall
    return elapsed * 1e3, (time.process_time() - processor) / max(elapsed, 1e-9)
