"""How a pruned net's latency compares with its parent's, in the runtime that will serve it, in turns.

N images, C channels, H height, W width.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from toolkit.backends.clock import measure_latency
from toolkit.backends.devices import PROVIDERS, Device
from toolkit.backends.run_onnx import OnnxRunner
from toolkit.backends.write import write_onnx
from toolkit.bundle import ONNX, Preprocessing
from toolkit.models import Deployed

BUDGET_S = 2.5
FEWEST, MOST = 30, 200
UNDISTURBED = 0.1  # neighbours only ever add time, and more to the net that moves more memory


@dataclass(eq=False)
class NetClock:
    """Exports nets and times them against `parent` on a batch of grey images, in onnxruntime on `device`.

    `images_NCHW` is the batch. `parent_ms` is the parent's time over its faster calls; `parent_fastest_ms` its fastest call,
    which compares with a table of fastest calls.
    """

    parent: nn.Module
    preprocessing: Preprocessing
    labels: Sequence[str]
    batch: int = 1
    threads: int = 1
    device: Device = "cpu"
    parent_ms: float = field(init=False)
    parent_fastest_ms: float = field(init=False)

    def __post_init__(self) -> None:
        shape_CHW = (self.preprocessing.num_channels, *self.preprocessing.size_px)
        self.images_NCHW = np.full((self.batch, *shape_CHW), 128, np.float32)
        self._parent = self.runner(self.parent)
        times_ms = measure_latency({"parent": self._parent}, self.images_NCHW, rounds=FEWEST, most_blocks=4)["parent"]
        self.parent_ms, self.parent_fastest_ms = float(np.quantile(times_ms, UNDISTURBED)), float(np.min(times_ms))

    def times_ms(self, net: nn.Module) -> tuple[float, float]:
        """Milliseconds of `net` and of the parent, taken in turns, each over its faster calls."""
        rounds = int(np.clip(1e3 * BUDGET_S / max(self.parent_ms, 1e-3), FEWEST, MOST))
        runners = {"net": self.runner(net), "parent": self._parent}
        found = measure_latency(runners, self.images_NCHW, rounds=rounds, most_blocks=4)
        return float(np.quantile(found["net"], UNDISTURBED)), float(np.quantile(found["parent"], UNDISTURBED))

    def runner(self, net: nn.Module) -> OnnxRunner:
        """`net` as it would be served, in a session of its own."""
        with tempfile.TemporaryDirectory(prefix="toolkit-latency-") as folder:
            path = Path(folder) / ONNX
            write_onnx(Deployed(net, self.preprocessing), path, preprocessing=self.preprocessing, labels=self.labels)
            return OnnxRunner(path, providers=PROVIDERS[self.device], threads=self.threads)
