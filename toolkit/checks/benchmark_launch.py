"""One launch: every runner in a fresh process of its own, side by side at one batch size, asked in turns.

Two processes of one program differ by a percent or two for as long as they live, because of where their memory happens to
lie, and no number of calls shows it. So a benchmark launches its runners several times, and a launch is one observation.

Legend: N images, K labels, R rounds.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.checks.benchmark_plan import Entry
from toolkit.checks.benchmark_timing import enough_quiet, kept_ms
from toolkit.checks.benchmark_worker import Task, Worker

MOST_BLOCKS = 4


@dataclass(frozen=True, eq=False)
class Launched:
    """What one process of a runner gave: milliseconds of each round's call (NaN: disturbed), facts, logits where asked for.

    `facts` are what the process answered to `open`, `warm` and `memory`, and whether most of its calls were disturbed.
    """

    times_ms_R: np.ndarray
    facts: dict[str, Any]
    logits_NK: np.ndarray | None


def launch(task: Task, entries: Sequence[Entry], *, rounds: int, seed: int, logits: bool) -> list[Launched]:
    """Open every entry for `task` (its images, batch size, threads), warm up, and time `rounds` rounds or a few times as many.

    With `logits` the images are answered as well. Raises what a process raised.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(_task_of(task, entry))) for entry in entries]
        started = [worker.ready() for worker in workers]  # all of them, so that none loads beside another
        facts = [start | worker.ask("open") for start, worker in zip(started, workers, strict=True)]
        logits_NK = [worker.logits_NK() if logits else None for worker in workers]
        facts = [fact | worker.ask("warm") for fact, worker in zip(facts, workers, strict=True)]
        calls = _timed(workers, rounds=rounds, seed=seed)
        facts = [fact | worker.ask("memory") for fact, worker in zip(facts, workers, strict=True)]
    return [
        Launched(kept_ms(*both), fact | {"contended": not enough_quiet(*both)}, answers)
        for both, fact, answers in zip(calls, facts, logits_NK, strict=True)
    ]


def _task_of(task: Task, entry: Entry) -> Task:
    compiled = Path(task.compiled, f"{entry.name}-{task.batch}")
    return replace(task, kind=entry.kind, device=entry.device, precision=entry.precision, compiled=str(compiled))


def _timed(workers: Sequence[Worker], *, rounds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Wall and processor seconds (R) of each worker's calls, round by round; further rounds where too few were quiet."""
    random = np.random.default_rng(seed)
    calls: list[list[tuple[float, float]]] = [[] for _ in workers]
    both: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(MOST_BLOCKS):
        for _ in range(rounds):
            for index in random.permutation(len(workers)):
                answer = workers[index].ask("turn")
                calls[index].append((answer["wall_s"], answer["cpu_s"]))
        both = [(np.array([wall for wall, _ in own]), np.array([cpu for _, cpu in own])) for own in calls]
        if all(enough_quiet(*each) for each in both):
            break
    return both
