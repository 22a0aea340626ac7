"""What each layer costs on this machine in onnxruntime, timed once and kept.

A table is of one machine: its key is the processor or the CUDA device, onnxruntime's version, the provider and the number of
threads. Entries are appended as lines, so two processes may fill one table and a killed one costs a line. The fastest of many
calls counts: what others do on the machine only ever adds time. A layer's input and output stay on the device, where the
layers before and after it would have them.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from toolkit.backends.devices import PROVIDERS, Device, torch_device, torch_settings
from toolkit.backends.op_graphs import empty_graph, op_graph
from toolkit.backends.run_onnx import open_session, require_here
from toolkit.bundle import environment
from toolkit.bundle.machine import cache_directory
from toolkit.pruning.layers import LayerOp

WARMUP, LEAST_CALLS, MOST_CALLS, LEAST_S = 2, 7, 60, 0.015
SMALLEST_MS = 1e-3
NUM_AGAIN = 4
VERSION = 1

logger = logging.getLogger(__name__)


class OpTable:
    """Milliseconds of a layer by its signature; times what it has not seen, and writes it down. `num_timed` counts those.

    Raises `EnvironmentProblem` where onnxruntime cannot run on `device` ("cpu" or "cuda").
    """

    def __init__(self, *, batch: int, threads: int, device: Device = "cpu", directory: Path | None = None) -> None:
        require_here(device)
        self.batch, self.threads, self.num_timed = batch, threads, 0
        self.device: Device = device
        where = environment()["processor"] if device == "cpu" else torch_settings(torch_device(device))["device"]
        facts = [VERSION, where, onnxruntime.__version__, PROVIDERS[device][0][0], threads]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self.path = (directory or cache_directory()) / "op_latency" / f"{key}.jsonl"
        self._ms = _read(self.path)
        self._call_ms: float | None = None

    def __call__(self, op: LayerOp) -> float:
        """Milliseconds of `op` for a batch of `batch` images."""
        key = _key(op, self.batch)
        if key not in self._ms:
            if self._call_ms is None:
                self._call_ms = self._timed(empty_graph())
            self._ms[key] = max(SMALLEST_MS, self._timed(op_graph(op, batch=self.batch)) - self._call_ms)
            self.num_timed += 1
            self._append(key)
        return self._ms[key]

    def slowdown(self, ops: Sequence[LayerOp]) -> float:
        """How much slower the machine is now than when the heaviest of `ops` were timed: 1 where it is as it was.

        A busy hour would otherwise look like work that the layers do not explain.
        """
        heaviest = sorted(set(ops), key=lambda op: (self(op), str(op)), reverse=True)[:NUM_AGAIN]
        now_ms = sum(self._timed(op_graph(op, batch=self.batch)) for op in heaviest)
        return now_ms / max(sum(self(op) for op in heaviest), 1e-9) if heaviest else 1.0

    def _timed(self, graph: bytes) -> float:
        device = self.device
        session = open_session(graph, providers=PROVIDERS[device], threads=self.threads)
        given = session.get_inputs()[0]
        feed = {given.name: np.full(given.shape, 0.5, np.float32)}
        call = functools.partial(session.run, None, feed) if device == "cpu" else resident_call(session, feed, device)
        return fastest_ms(call)

    def _append(self, key: str) -> None:
        line = json.dumps({"op": key, "ms": self._ms[key]}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            logger.warning("timings are not kept: %s cannot be written (%s)", self.path, error.strerror)


def resident_call(session: Any, feed: Mapping[str, np.ndarray], device: Device) -> Callable[[], Any]:
    """A call of `session` that leaves its inputs and outputs on `device`, and returns their binding when it is done."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def call() -> Any:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return call


def fastest_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of at least 7 calls, after two to warm up."""
    for _ in range(WARMUP):
        call()
    times: list[float] = []
    while len(times) < LEAST_CALLS or (sum(times) < LEAST_S and len(times) < MOST_CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def _key(op: LayerOp, batch: int) -> str:
    return json.dumps({**dataclasses.asdict(op), "batch": batch}, sort_keys=True)


def _read(path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
            found[entry["op"]] = float(entry["ms"])
        except (ValueError, TypeError, KeyError):  # cut off by a kill: timed again
            continue
    return found
