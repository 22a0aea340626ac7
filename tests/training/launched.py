"""Fresh interpreters that train together, as torchrun would start them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launched(script: Path, *arguments: object, num_processes: int) -> list[int]:
    """The exit codes of `num_processes` interpreters that run the script; an ending by SIGTERM is no failure."""
    port, started = str(free_port()), []
    for rank in range(num_processes):
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes), "GROUP_RANK": "0"}
        torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", **places}
        environment = {**os.environ, **(torchrun if num_processes > 1 else {}), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in started:
            _, errors = process.communicate(timeout=240)
            assert process.returncode in (0, 128 + signal.SIGTERM), errors
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started]
