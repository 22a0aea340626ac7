"""Many images at once, with a progress bar.

Threads, not processes: PIL and hashlib release the interpreter lock while they work, so threads reach the same speed
without copying pixels between processes or starting interpreters.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")

_WINDOW = 4096  # items waiting at a time: a million futures would take gigabytes


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, description: str) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`, computed in one thread a CPU; an exception ends the iteration.

    The bar named `description` appears on a terminal only, and on the first process of a machine only.
    """
    pool = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    try:
        with _progress() as progress:
            task = progress.add_task(description, total=len(items))
            for start in range(0, len(items), _WINDOW):
                for result in pool.map(function, items[start : start + _WINDOW]):
                    yield result
                    progress.advance(task)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal or os.environ.get("LOCAL_RANK", "0") != "0"
    return Progress(*columns, console=console, transient=True, disable=quiet)
