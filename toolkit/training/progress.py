"""What a person sees of a fit: one bar a phase on a terminal, a line an epoch at most every few seconds elsewhere."""

import logging
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from toolkit.training.schedule import Phase

SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


def title_of(phase: Phase) -> str:
    """What a phase trains, for people."""
    if phase.depth == 0:
        return "head"
    return "all stages" if phase.depth < 0 else f"head + {phase.depth} stage{'s' if phase.depth > 1 else ''}"


class Progress:
    """The progress of one fit; a context manager. `quiet` shows nothing (processes other than the first)."""

    def __init__(self, monitor: str, *, quiet: bool = False, console: Console | None = None) -> None:
        self.monitor, self.quiet = monitor, quiet
        self.console = console or Console(stderr=True)
        self.bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.description:<14}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", style="cyan"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._bar: TaskID | None = None
        self._phase: Phase | None = None
        self._last_line_s = 0.0

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bars.stop()

    def passes(self, what: str) -> None:
        """Say what is being done before a phase's first step."""
        if self._bar is not None:
            self.bars.update(self._bar, text=what)

    def phase(self, phase: Phase, *, num_steps: int, done: int) -> None:
        """Start the bar of a phase of `num_steps` steps, of which `done` are done."""
        self._phase = phase
        self._bar = self.bars.add_task(title_of(phase), total=num_steps, completed=done, text="")

    def advance(self, num_steps: int) -> None:
        """Some steps are done."""
        if self._bar is not None:
            self.bars.advance(self._bar, num_steps)

    def epoch(self, record: Mapping[str, float]) -> None:
        """An epoch is done, with these scores."""
        assert self._phase is not None
        epoch = f"epoch {record['epoch']:.0f}/{self._phase.epochs}"
        text = f"loss {record['train_loss']:.4f}  {self.monitor.replace('_', ' ')} {record[self.monitor]:.4f}"
        if self._bar is not None:
            self.bars.update(self._bar, text=f"{epoch}  {text}")
        last = record["epoch"] == self._phase.epochs
        if (
            not self.quiet
            and not self.console.is_terminal
            and (last or time.monotonic() - self._last_line_s > SECONDS_BETWEEN_LINES)
        ):
            self._last_line_s = time.monotonic()
            logger.info("%s: %s  %s", title_of(self._phase), epoch, text)

    def phase_done(self) -> None:
        """The phase is over, perhaps early."""
        if self._bar is not None:
            task = next(task for task in self.bars.tasks if task.id == self._bar)
            self.bars.update(self._bar, total=max(task.completed, 1), completed=max(task.completed, 1))
            self._bar = None
