"""The benchmark's side of a runner's process: start it, ask it, and turn its errors into the toolkit's.

Legend: N images, K labels.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import errors
from toolkit.errors import EnvironmentProblem

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}  # for the libraries that a runtime asks itself, TensorRT among them
MODULE = "toolkit.checks.benchmark_process"
GRAPH_MODULE = "toolkit.checks.footprint_process"


@dataclass(frozen=True)
class Task:
    """What a process is for: a bundle (by store and digest), what opens it, a batch size, threads, images and logits files.

    What `torch.compile` writes goes to `compiled`, empty at first, so that compiling is measured from nothing. `imports` are
    modules that register the bundle's architecture. With `graph` a graph file is run as it is (`footprint_process`).
    """

    store: str
    digest: str
    kind: str
    batch: int
    threads: int
    images: str
    logits: str
    device: str = "cpu"
    precision: str = "fp32"
    compiled: str = ""
    imports: tuple[str, ...] = ()
    graph: str = ""


class Worker:
    """A process that holds one runner. A context manager: the process ends with the block."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        settings = NO_TF32 | ({"TORCHINDUCTOR_CACHE_DIR": task.compiled} if task.compiled else {})
        threads = {name: str(task.threads) for name in THREAD_SETTINGS}
        self.process = subprocess.Popen(
            [sys.executable, "-m", GRAPH_MODULE if task.graph else MODULE, json.dumps(asdict(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **threads, **settings, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def ready(self) -> dict[str, Any]:
        """Wait until the process has imported what it needs; the number of threads it runs on."""
        return self._answer()

    def ask(self, verb: str) -> dict[str, Any]:
        """The answer to one question (`benchmark_process`). Raises the toolkit error that the process raised."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": verb}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self._answer()

    def logits_NK(self) -> np.ndarray:  # noqa: N802
        """The logits of all images."""
        self.ask("predict")
        return np.load(Path(self.task.logits), allow_pickle=False)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            raise EnvironmentProblem(
                f"the process of runner {self.task.kind} (batch {self.task.batch}) ended with code {self.process.wait()}; "
                f"it said: {said[-1]}. Out of memory ends it with -9: try a smaller batch."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["type"])(answer["error"])
        return answer
