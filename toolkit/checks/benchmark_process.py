"""One runner alone in a process: what `benchmark` starts for each runner and batch size, and asks over standard input.

Memory is only a runner's own where nothing else lives in the process. Its peak counts from the moment when every module is
imported and the images are loaded, so torch's and onnxruntime's own weight is left out. Linux is asked for `VmHWM`:
`ru_maxrss` outlives exec there, and a child of a large parent would report the parent's peak.

One JSON object a line goes each way: `{"do": "open" | "predict" | "warm" | "turn" | "memory"}` in, the answer or
`{"error": ...}` out. Standard output is kept for the answers; whatever a library prints goes to standard error.

Legend: N images, C channels, H height, W width.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
import torch

from toolkit.backends import free_device_bytes, open_runner, require_runner
from toolkit.backends.noise import in_batches
from toolkit.bundle import Store
from toolkit.checks.benchmark_timing import warm_up
from toolkit.checks.peak_memory import peak_bytes
from toolkit.errors import ToolkitError


class Bench:
    """The runner under test and the questions it answers; `task` is what `benchmark_worker` wrote."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        for module in task["imports"]:
            importlib.import_module(module)
        torch.set_num_threads(task["threads"])
        self.images_NCHW = np.load(task["images"], allow_pickle=False)
        self.batch_NCHW = _repeated(self.images_NCHW, task["batch"]).astype(np.float32)
        self.bundle = Store(task["store"]).open(task["digest"])
        require_runner(task["kind"], task["device"])  # imports it
        self.before_bytes = peak_bytes()

    def open(self) -> dict[str, Any]:
        """Open the runner; milliseconds until it stands and, apart, those of its first call; what it took of a GPU's memory."""
        free_bytes = self._free_bytes()
        start = time.perf_counter()
        self.runner = open_runner(
            self.bundle,
            kind=self.task["kind"],
            precision=self.task["precision"],
            device=self.task["device"],
            threads=self.task["threads"],
        )
        opened = time.perf_counter()
        self.runner(self.batch_NCHW)
        called = time.perf_counter()
        left_bytes = self._free_bytes()
        return {
            "load_ms": 1e3 * (opened - start),
            "first_call_ms": 1e3 * (called - opened),
            "device_bytes": None if free_bytes is None or left_bytes is None else free_bytes - left_bytes,
            "settings": getattr(self.runner, "settings", {}),
        }

    def predict(self) -> dict[str, Any]:
        """Write the logits of all images, asked in exactly the batch size under test, to the file the task names."""
        np.save(self.task["logits"], in_batches(self.runner, self.images_NCHW, self.task["batch"]), allow_pickle=False)
        return {}

    def warm(self) -> dict[str, Any]:
        """Call until the processor time of a call is steady, and hold the garbage collector from then on."""
        num_calls, steady = warm_up(lambda: self.call()["cpu_s"])
        gc.collect()
        gc.disable()
        return {"num_warm_calls": num_calls, "steady": steady}

    def call(self) -> dict[str, float]:
        """Wall and processor seconds of one call. The processor waits for a GPU, or it does not: there they count as equal."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.runner(self.batch_NCHW)
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall_s": wall_s, "cpu_s": cpu_s if self.task["device"] == "cpu" else wall_s}

    def turn(self) -> dict[str, float]:
        """One timed call after one that is not, which brings the caches back from the other runners."""
        self.call()
        return self.call()

    def memory(self) -> dict[str, int]:
        """Bytes at the peak, and those the process held before the runner was opened."""
        return {"peak_bytes": peak_bytes(), "before_bytes": self.before_bytes}

    def _free_bytes(self) -> int | None:
        return None if self.task["device"] == "cpu" else free_device_bytes()


def serve(bench: Bench, questions: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer until the questions end."""
    verbs = {verb.__name__: verb for verb in (bench.open, bench.predict, bench.warm, bench.turn, bench.memory)}
    answer({"threads": torch.get_num_threads()})
    for line in questions:
        answer(verbs[json.loads(line)["do"]]())


def _repeated(images_NCHW: np.ndarray, batch: int) -> np.ndarray:
    return images_NCHW[np.arange(batch) % len(images_NCHW)]


def main() -> None:
    """The process: `python -m toolkit.checks.benchmark_process <task as JSON>`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        serve(Bench(json.loads(sys.argv[1])), sys.stdin, answer)
    except ToolkitError as error:
        answer({"error": str(error), "type": type(error).__name__})
        sys.exit(1)


if __name__ == "__main__":
    main()
