"""SIGTERM ends a command the way Ctrl-C does: through the code, so that temporary folders and child processes go with it.

Stages that have something to save (training, monitoring) put handlers of their own in place while they run.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGTERM


@contextlib.contextmanager
def clean_termination() -> Iterator[None]:
    """Within the block SIGTERM raises `SystemExit(143)`, where this is the main thread and nobody else handles it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_CODE)
