"""Processes for the tests that kill, signal or start several of them.

Each is forked from a server of Python's `multiprocessing` that has imported the toolkit and done nothing else: a process of
its own, without the seconds that importing torch and Lightning takes. A fork of the tests' own process would not do: it may
wait for ever for threads of torch that only its parent has.
"""

import atexit
import functools
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["toolkit.cli", "toolkit.stages.upgrade", "toolkit.stages.monitor", "toolkit.data.shards"])

COMMAND = "from toolkit.cli import main; main()"


class Child:
    """A process that runs the program `code` with `arguments` in `sys.argv[1:]`, in the directory `cwd`."""

    def __init__(self, code: str, *arguments: object, cwd: Path | None = None, **environment: str) -> None:
        folder = tempfile.mkdtemp(dir=_outputs())
        self._files = [Path(folder, name) for name in ("out", "err")]
        places = [str(path) for path in self._files]
        argv = [str(argument) for argument in arguments]
        self._process = _context.Process(target=_run, args=(code, argv, str(cwd or Path.cwd()), environment, places))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float = 240) -> int:
        """The exit code, once it has one."""
        self._process.join(timeout_s)
        code = self.poll()
        assert code is not None, f"the process still runs after {timeout_s} s"
        return code

    def send_signal(self, number: int) -> None:
        assert self._process.pid
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it, if it still runs."""
        self._process.kill()
        self._process.join()

    @property
    def stdout(self) -> str:
        return self._files[0].read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._files[1].read_text(encoding="utf-8")


@functools.cache
def _outputs() -> str:
    """Where this process keeps what its children print, until it ends."""
    folder = tempfile.mkdtemp(prefix="toolkit-children-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def command(*arguments: str, cwd: Path, **environment: str) -> Child:
    """`toolkit` with these arguments, ended."""
    child = Child(COMMAND, *arguments, cwd=cwd, **environment)
    child.wait()
    return child


def together(code: str, *arguments: object, num_processes: int) -> list[Child]:
    """The processes, started as torchrun would start them; a single one is started by itself."""
    port, started = str(free_port()), []
    for rank in range(num_processes):
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes), "GROUP_RANK": "0"}
        torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", **places}
        started.append(Child(code, *arguments, **(torchrun if num_processes > 1 else {})))
    return started


def launched(code: str, *arguments: object, num_processes: int) -> list[int]:
    """The exit codes of `together`; an ending by SIGTERM is no failure."""
    started = together(code, *arguments, num_processes=num_processes)
    try:
        for child in started:
            assert child.wait() in (0, 128 + signal.SIGTERM), child.stderr
    finally:
        for child in started:
            child.kill()
    return [child.wait() for child in started]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(code: str, argv: list[str], cwd: str, environment: dict[str, str], places: list[str]) -> None:
    for number, place in enumerate(places, start=1):
        with open(place, "w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), number)
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["child.py", *argv]
    exec(compile(code, "child.py", "exec"), {"__name__": "__main__"})
