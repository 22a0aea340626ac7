"""Contenders in turns, and what their times say.

Contenders of a round run one after the other, in a new order each time, so that a busy neighbour slows all alike; ratios are
taken within a round and their median and range reported.
"""

import io
import logging
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from rich.console import Console

from toolkit.training import progress

Times = dict[str, list[float]]


def in_turns(contenders: dict[str, Callable[[], float]], *, rounds: int) -> Times:
    """Seconds of each contender (what it returns) by round, after a round that does not count."""
    found: Times = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(contenders), len(contenders)):
            seconds = contenders[name]()
            if number:
                found[name].append(seconds)
    return found


def clock() -> float:
    """Seconds of the processor where torch has one thread (no neighbour counts then), else of the wall."""
    if torch.get_num_threads() == 1 and not torch.cuda.is_available():
        return time.process_time()
    return time.perf_counter()


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes, by `clock`."""
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def beyond(work: Callable[[int], object], few: int, many: int) -> float:
    """Seconds that `many` epochs take beyond what `few` take: no start, no imports."""
    return timed(lambda: work(many)) - timed(lambda: work(few))


def row(
    what: str, times: Times, ours: str, other: str, target: float | None, *, per: float = 1.0, unit: str = ""
) -> dict[str, Any]:
    """A line of the table: how many times as fast `ours` is as `other`, and what `per` units a run make a second."""
    ratios = [b / a for a, b in zip(times[ours], times[other], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "what": what,
        "ours": per / statistics.median(times[ours]),
        "other": per / statistics.median(times[other]),
        "unit": unit,
        "ratio": ratio,
        "range": [min(ratios), max(ratios)],
        "target": target,
        "met": None if target is None else ratio >= target,
    }


@contextmanager
def silence() -> Iterator[None]:
    """Bars are drawn, as on a terminal, but nobody reads them here."""
    drawn, progress.Console = progress.Console, lambda **_: Console(file=io.StringIO(), force_terminal=True)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        progress.Console = drawn
        logging.disable(logging.NOTSET)
