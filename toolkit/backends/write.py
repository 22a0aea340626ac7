"""How a deployed model is written as an ONNX graph, and what must be true of the graph afterwards.

The exporter succeeds quietly where it did not do what was asked: another opset (it writes 18 for anything older), a batch
dimension baked in, a bias it could not place. So everything asked for is read back from the file, and the graph must run at
batch sizes it never saw. Plain convolutional networks take the short way (`fast_export`), which is held to the same.

Legend: N images, C channels, H height, W width, K labels.
"""

import contextlib
import copy
import functools
import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import nn

from toolkit.backends.describe import describe_graph
from toolkit.backends.exporter_registry import operators_kept
from toolkit.backends.fast_export import fast_trace, same_answers, suits
from toolkit.backends.graph_files import read_graph
from toolkit.backends.run_onnx import OnnxRunner
from toolkit.backends.undecomposed import decomposition_spared
from toolkit.bundle import Preprocessing
from toolkit.bundle.atomic import environment_errors
from toolkit.errors import InputRefused, UsageError

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
OPSETS = range(18, 24)
EXTERNAL_ABOVE_BYTES = 1_500_000_000
EXAMPLE_BATCH = 2
UNSEEN_BATCHES = (1, 5)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportFacts:
    """What was written, read back from the file: `num_bytes` with external data, `seconds` by phase.

    `method` is how the graph was traced: `dynamic` (free batch dimension) or `folded` (see `fast_export`).
    """

    opset: int
    ir_version: int
    num_nodes: int
    num_bytes: int
    external_data: bool = False
    method: Literal["dynamic", "folded"] = "dynamic"
    seconds: Mapping[str, float] = field(default_factory=dict)


def write_onnx(
    deployed: nn.Module,
    path: Path,
    *,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    opset: int = 20,
    metadata: Mapping[str, str] | None = None,
    fast: bool = True,
) -> ExportFacts:
    """Write `deployed` (float32 pixels images_NCHW to logits_NK) to `path` with a free batch dimension.

    Labels, preprocessing, the toolkit's version and `metadata` go into the graph's properties. Equal models give equal
    bytes. `fast` tries the short way first. Raises `UsageError` for an opset the exporter does not write, `InputRefused`
    when the model cannot be exported or the graph is not what was asked for; then no file is left.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset is {opset}; the exporter writes {OPSETS[0]} to {OPSETS[-1]} (20 is the default).")
    shape_CHW = (preprocessing.num_channels, *preprocessing.size_px)
    seconds: dict[str, float] = {}
    described = functools.partial(describe_graph, preprocessing=preprocessing, labels=labels, metadata=metadata or {})
    if fast and suits(deployed) and _write_fast(deployed, path, shape_CHW, opset=opset, described=described, seconds=seconds):
        method: Literal["dynamic", "folded"] = "folded"
    else:
        method = "dynamic"
        with timed(seconds, "trace"):
            model = trace(copy.deepcopy(deployed), torch.zeros(EXAMPLE_BATCH, *shape_CHW), opset=opset, dynamic=True)
        with timed(seconds, "write"):
            described(model)
            save_graph(model, path)
    try:
        with timed(seconds, "verify"):
            model = verify(path, opset=opset, shape_CHW=shape_CHW, num_labels=len(labels), run=method == "dynamic")
    except BaseException:
        remove_graph(path)
        raise
    return facts(path, method=method, seconds=seconds, model=model)


def _write_fast(
    deployed: nn.Module,
    path: Path,
    shape_CHW: tuple[int, ...],
    *,
    opset: int,
    described: Callable[[onnx.ModelProto], None],
    seconds: dict[str, float],
) -> bool:
    """Write the graph the short way; False, and no file, where that does not give the module's answers."""
    with timed(seconds, "fast_trace"):
        model = fast_trace(deployed, shape_CHW, trace=functools.partial(trace, opset=opset), batch_name=BATCH)
    if model is None:
        return False
    with timed(seconds, "write"):
        described(model)
        save_graph(model, path)
    with timed(seconds, "verify"):
        same = same_answers(path, deployed, shape_CHW)
    if not same:
        remove_graph(path)
    return same


def facts(
    path: Path, *, method: Literal["dynamic", "folded"], seconds: Mapping[str, float], model: onnx.ModelProto | None = None
) -> ExportFacts:
    """What the graph at `path` is; `model` is what it holds, where that was read already."""
    model = read_graph(path) if model is None else model
    data = _data_file(path)
    size = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    return ExportFacts(opset_of(model), model.ir_version, len(model.graph.node), size, data.exists(), method, dict(seconds))


def trace(deployed: nn.Module, example_NCHW: torch.Tensor, *, opset: int, dynamic: bool = False) -> onnx.ModelProto:
    """The graph of `deployed`, which is put in eval mode on the CPU for it; `dynamic` frees the batch dimension.

    Raises `InputRefused` with the exporter's reason.
    """
    module = deployed.cpu().eval()
    try:
        spared = contextlib.nullcontext() if dynamic else decomposition_spared()
        with quiet(), torch.no_grad(), operators_kept(opset), spared:
            program = torch.onnx.export(
                module,
                (example_NCHW,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},) if dynamic else None,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # every cause comes wrapped in classes of the exporter's own
        raise InputRefused(
            f"{_model_name(deployed)} cannot be exported to ONNX: {_reason(error)} Data-dependent control flow and operators "
            "without an ONNX form are the usual causes: rewrite that part with tensor operations."
        ) from error
    assert program is not None
    return program.model_proto


def verify(path: Path, *, opset: int, shape_CHW: tuple[int, ...], num_labels: int, run: bool = True) -> onnx.ModelProto:
    """The graph at `path`, without external tensors. Raises `InputRefused`, naming every request that it does not keep: opset,
    names, free batch, output shape.

    `run` tries it at batches it never saw; the short way has done that already, and held the answers to the module's.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise InputRefused(f"{path} is not a valid graph: {str(error).strip().splitlines()[0]}") from error
    model = read_graph(path)
    problems = [] if opset_of(model) == opset else [f"its opset is {opset_of(model)}, not {opset}"]
    for kind, values, name in (("input", model.graph.input, INPUT), ("output", model.graph.output, OUTPUT)):
        if [value.name for value in values] != [name]:
            problems.append(f"its {kind}s are {', '.join(value.name for value in values)}, not '{name}'")
        elif values[0].type.tensor_type.shape.dim[0].dim_param != BATCH:
            problems.append(
                f"the batch dimension of '{name}' is fixed (does the model use len(x) or int()? x.shape[0] stays free)"
            )
    if run and not problems:
        runner = OnnxRunner(path, threads=1, optimisation="off")
        for batch in UNSEEN_BATCHES:
            shape = runner(np.zeros((batch, *shape_CHW), np.float32)).shape
            if shape != (batch, num_labels):
                problems.append(f"for a batch of {batch} its output has shape {list(shape)}, not {[batch, num_labels]}")
    if problems:
        raise InputRefused(f"the exported graph {path} is not what was asked for: {'; '.join(problems)}.")
    return model


def graph_opset(path: Path) -> int:
    """The version of the standard operator set that the graph at `path` uses; 0 when it names none."""
    return opset_of(read_graph(path))


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set the graph uses; 0 when it names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


@contextlib.contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of the block to `seconds[phase]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's prints, logs and warnings off the terminal: what they warn of is verified in the graph."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph; large tensors go into a file beside it. Equal graphs give equal bytes."""
    with environment_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_graph(path)
        if _weight_bytes(model) <= EXTERNAL_ABOVE_BYTES:
            path.write_bytes(model.SerializeToString(deterministic=True))
        else:
            onnx.save_model(model, str(path), save_as_external_data=True, location=_data_file(path).name)


def _weight_bytes(model: onnx.ModelProto) -> int:
    """What the weights take; protobuf's own count writes the whole message to learn its size."""
    sizes = ((t.dims, onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize) for t in model.graph.initializer)
    return sum(math.prod(dims) * size for dims, size in sizes)


def _data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def remove_graph(path: Path) -> None:
    """Remove the graph at `path`, if there is one, and its external data."""
    path.unlink(missing_ok=True)
    _data_file(path).unlink(missing_ok=True)


def _model_name(deployed: nn.Module) -> str:
    return type(getattr(deployed, "net", deployed)).__name__


def _reason(error: BaseException) -> str:
    """The innermost cause, in one sentence: the exporter's own message is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
