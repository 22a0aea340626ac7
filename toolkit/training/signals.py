"""SIGTERM and SIGINT as requests: training saves at the next step and then ends with 143 or 130.

Lightning ends with exit status 0 after SIGTERM and saves nothing by default, so a preempted job looks finished.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Terminated(SystemExit):
    """SIGTERM was received and the run saved; the process should exit with 143. The message says how to resume."""

    def __init__(self, message: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupted(KeyboardInterrupt):
    """SIGINT was received and the run saved; the process should exit with 130. The message says how to resume."""


class Signals:
    """Notes SIGTERM and SIGINT instead of dying; a second SIGINT interrupts at once.

    A context manager that puts the former handlers back; outside the main thread it notes nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, former in self._former.items():
            signal.signal(number, former if former is not None else signal.SIG_DFL)

    @property
    def terminated(self) -> bool:
        """Whether the signal received is SIGTERM."""
        return self.received == signal.SIGTERM

    def listen(self) -> None:
        """Install the handlers; again, after a library has put its own in their place."""
        for number in self._former:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
