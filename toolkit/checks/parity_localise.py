"""Where a graph stops being its model: the first module whose output leaves the noise that float32 makes there.

The exporter notes on every node the module it came from, so most modules have one value in the graph that is their output. All
of them are made outputs of one session, or as many as there is memory for (`parity_search`), and compared, each with its own
floor, with what the untouched module computes in float64. Before the fault every value lies in its noise; the first that does
not, in the order of computation, is the place. A convolution folded into its BatchNorm has no value of its own, so the two are
named together.

Legend: N images, C channels, H height, W width.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from toolkit.backends import EagerRunner, module_path, open_session, source_line
from toolkit.backends.graph_files import external_tensors, read_graph
from toolkit.backends.noise import EPSILON, moved_by_one_ulp
from toolkit.checks.parity_search import search, upstream_modules

NUM_IMAGES = 4
IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)
MAX_BYTES = 4 * 2**30
BYTES_PER_ELEMENT = 8 + 8 + 4  # the float64 reference, a float32 run's value beside it, the graph's value


@dataclass(frozen=True)
class Place:
    """A module's output in the graph, its error in floors (`ratio`), and the modules `fused` into it, which own no value."""

    module: str
    fused: tuple[str, ...]
    op_type: str
    value: str
    source: str
    ratio: float

    @property
    def name(self) -> str:
        """The module, after those that only show in its output."""
        return " + ".join((*self.fused, self.module))


@dataclass(frozen=True)
class Localisation:
    """The places compared, in the order of computation, and the first whose error exceeds the limit (None: there is none)."""

    places: tuple[Place, ...]
    culprit: Place | None

    def plain(self) -> dict[str, Any]:
        """For a report's details: the places up to the culprit, which JSON can hold (an infinite ratio becomes null)."""
        end = self.places.index(self.culprit) + 1 if self.culprit else len(self.places)
        places = [asdict(p) | {"ratio": p.ratio if np.isfinite(p.ratio) else None} for p in self.places[:end]]
        return {"sentence": self.sentence(), "culprit": places[-1] if self.culprit else None, "places": places}

    def sentence(self) -> str:
        """What was found, for people."""
        if self.culprit is None:
            return (
                "Without onnxruntime's optimiser every module's output lies within its noise: the fault is one of the "
                "optimiser's fusions, or outside the modules"
            )
        before = self.places[: self.places.index(self.culprit)]
        worst = f"at most {max(place.ratio for place in before):.1f} before" if before else "the first place compared"
        line = f", {self.culprit.source}" if self.culprit.source else ""
        where = f"{self.culprit.name} ({self.culprit.op_type}{line})"
        return f"The fault is in {where}: its error is {self.culprit.ratio:.3g} floors, {worst}"


def localise(
    reference: nn.Module,
    onnx_path: Path,
    images_NCHW: np.ndarray,
    *,
    k: float = 8.0,
    num_runs: int = 5,
    max_bytes: int = MAX_BYTES,
) -> Localisation:
    """Compare the module outputs inside the graph at `onnx_path` with `reference` on four of the images (float32 pixels).

    `k` is the limit in floors, `num_runs` the float32 runs that measure each floor, `max_bytes` what the compared values may
    take at a time. A value that is no number counts as infinitely wrong. Raises `InputRefused` for a graph that cannot be
    loaded.
    """
    chosen = np.linspace(0, len(images_NCHW) - 1, min(NUM_IMAGES, len(images_NCHW))).round().astype(int)
    images_NCHW = np.ascontiguousarray(images_NCHW[chosen], dtype=np.float32)
    model = read_graph(onnx_path)
    nodes = _outputs_of_modules(model)
    shapes, order = _output_shapes(reference, images_NCHW, set(nodes))
    fused = _fused(order, nodes)

    def compare(modules: Sequence[str]) -> Iterator[Place]:
        found = _graph_values(model, onnx_path, [nodes[module].output[0] for module in modules], images_NCHW)
        double, floor = reference_values(reference, images_NCHW, set(modules), num_runs)
        for module in modules:
            node, value = nodes[module], found[nodes[module].output[0]]
            if module in floor and value.shape == double[module].shape:
                ratio = _ratio(value, double[module], floor[module])
                yield Place(module, fused.get(module, ()), node.op_type, node.output[0], source_line(node), ratio)

    values = {module: node.output[0] for module, node in nodes.items() if module in shapes}
    num_bytes = {module: int(np.prod(shapes[module])) * BYTES_PER_ELEMENT for module in values}
    upstream = upstream_modules(model.graph, values)
    places = search(list(values), upstream, num_bytes, compare, max_bytes=max_bytes, k=k)
    return Localisation(tuple(places), next((place for place in places if place.ratio > k), None))


def _outputs_of_modules(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Module name → the node whose output leaves the module, for modules that one value leaves, in the graph's order."""
    paths = [module_path(node) for node in model.graph.node]
    makers = {output: index for index, node in enumerate(model.graph.node) for output in node.output}
    users: dict[str, list[str]] = {output.name: [""] for output in model.graph.output}
    for path, node in zip(paths, model.graph.node, strict=True):
        for name in node.input:
            users.setdefault(name, []).append(path)
    leaving: dict[str, list[int]] = {}
    for name, index in makers.items():
        for module in _with_ancestors(paths[index]):
            if any(not _inside(user, module) for user in users.get(name, [])):
                leaving.setdefault(module, []).append(index)
    single = {indices[0]: module for module, indices in leaving.items() if len(indices) == 1}  # deepest of those that share one
    for module, indices in leaving.items():
        if len(indices) == 1 and len(module) > len(single[indices[0]]):
            single[indices[0]] = module
    return {single[index]: model.graph.node[index] for index in sorted(single)}


def _with_ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)] if path else []


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _graph_values(model: onnx.ModelProto, path: Path, names: Sequence[str], images_NCHW: np.ndarray) -> dict[str, np.ndarray]:
    """The named values of the graph, which lies at `path`, run without optimisation so that they exist as they stand."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {output.name for output in exposed.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    if any(True for _ in external_tensors(model)):  # those are found from where the graph lies
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".values-", suffix=".onnx") as file:
            file.write(exposed.SerializeToString())
            file.flush()
            session = open_session(file.name, threads=1, optimisation="off")
    else:
        session = open_session(exposed.SerializeToString(), threads=1, optimisation="off")
    values = session.run(list(names), {session.get_inputs()[0].name: images_NCHW})
    return dict(zip(names, values, strict=True))


def reference_values(
    reference: nn.Module, images_NCHW: np.ndarray, wanted: set[str], num_runs: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The float64 output of each wanted module of `reference` at its last call, and its floor for each image (N,)."""
    double: dict[str, np.ndarray] = {}
    squares: dict[str, list[np.ndarray]] = {}
    runner = EagerRunner(reference, dtype="float64", threads=1)
    with _watching(runner.deployed, wanted, lambda name, value: double.__setitem__(name, _as_double(value))):
        runner(images_NCHW)
    random = np.random.default_rng(0)
    single = EagerRunner(reference, threads=1)

    def compare(name: str, value: Tensor) -> None:
        if name in double and tuple(value.shape) == double[name].shape:
            squares.setdefault(name, []).append(_rms(_as_double(value) - double[name]) ** 2)

    with _watching(single.deployed, wanted, compare):
        for run in range(num_runs):
            single(images_NCHW if run == 0 else moved_by_one_ulp(images_NCHW, random))
    floors = {name: np.sqrt(np.mean(rows, axis=0)) for name, rows in squares.items()}
    return double, {name: np.maximum(floor_N, np.median(floor_N)) for name, floor_N in floors.items()}


def _output_shapes(
    reference: nn.Module, images_NCHW: np.ndarray, wanted: set[str]
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The shape of each wanted module's output for these images, and the order of calls (wanted modules, leaves)."""
    shapes: dict[str, tuple[int, ...]] = {}
    order: list[str] = []
    runner = EagerRunner(reference, threads=1)

    def note(name: str, value: Tensor) -> None:
        order.append(name)
        if name in wanted and value.numel():
            shapes[name] = (len(images_NCHW), *value.shape[1:])

    leaves = {name for name, part in reference.named_modules() if not (list(part.children()) or isinstance(part, IDLE))}
    with _watching(runner.deployed, wanted | leaves, note):
        runner(images_NCHW[:1])
    return shapes, order


@contextmanager
def _watching(module: nn.Module, wanted: set[str], record: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `record(name, output)` at each call of a wanted module; the output is a tensor, or empty where it is none."""

    def hook(name: str) -> Callable[..., None]:
        def watch(_part: nn.Module, _inputs: Any, output: Any) -> None:
            record(name, output.detach() if isinstance(output, Tensor) else torch.empty(0))

        return watch

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name in wanted and name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_double(value: Tensor) -> np.ndarray:
    """A copy, because layers that work in place overwrite what they were given."""
    return value.to(torch.float64, copy=True).numpy()


def _fused(order: list[str], nodes: Mapping[str, onnx.NodeProto]) -> dict[str, tuple[str, ...]]:
    """Modules without a value of their own show their error first in the next module called that has one."""
    fused: dict[str, tuple[str, ...]] = {}
    waiting: list[str] = []
    for name in order:
        if name in nodes:
            fused.setdefault(name, tuple(dict.fromkeys(waiting)))
            waiting.clear()
        else:
            waiting.append(name)
    return fused


def _ratio(value: np.ndarray, double: np.ndarray, floor_N: np.ndarray) -> float:
    if not np.isfinite(value).all():
        return float("inf")
    allowed_N = 4 * EPSILON * _rms(double)
    error_N = np.maximum(_rms(value - double) - allowed_N, 0)
    return float((error_N / np.maximum(floor_N, np.finfo(np.float64).tiny)).max())


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(values.reshape(len(values), -1), dtype=np.float64), axis=1))
