"""How a net is written as an ONNX graph, and what must be true of the graph afterwards.

The exporter succeeds quietly where it did not do what was asked: another opset, a batch dimension baked in, names changed.
So every request is read back from the file, and the graph must run at batches it never saw. Node metadata keeps the module
names (they explain a failing parity check) and loses the stack traces (they name the user's folders).

Shapes: N images, C channels, H height, W width (pixels), K labels.
"""

import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from toolkit import __version__
from toolkit.backends.onnx_files import clean_metadata
from toolkit.backends.onnx_runner import OnnxRunner
from toolkit.bundle import Preprocessing
from toolkit.errors import InputRefused, UsageError

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
MIN_OPSET = 18
EXTERNAL_ABOVE_BYTES = 1_500_000_000
UNSEEN_BATCHES = (1, 3)


@dataclass(frozen=True)
class ExportFacts:
    """What was written: opset and IR version got, number of nodes, bytes, and the seconds each phase took."""

    opset: int
    ir_version: int
    num_nodes: int
    num_bytes: int
    seconds: Mapping[str, float] = field(default_factory=dict)


def write_onnx(
    deployed: nn.Module,
    path: Path,
    *,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    opset: int = 20,
    metadata: Mapping[str, str] | None = None,
) -> ExportFacts:
    """Write `deployed` (float32 pixels images_NCHW to logits_NK) to `path` with a free batch dimension.

    Labels, preprocessing (JSON) and `metadata` go into the model's properties. Raises `UsageError` for an opset the
    exporter does not offer and `InputRefused` when the graph is not what was asked for.
    """
    if opset < MIN_OPSET:
        raise UsageError(f"opset is {opset}; the exporter offers {MIN_OPSET} and later (20 is the default)")
    height, width = preprocessing.size_px
    example_NCHW = torch.full((2, preprocessing.num_channels, height, width), 128.0)
    seconds: dict[str, float] = {}
    with _timed(seconds, "export"):
        model = _export(deployed, example_NCHW, opset=opset)
    with _timed(seconds, "write"):
        clean_metadata(model)
        _describe(model, preprocessing, labels, metadata or {})
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(model, path)
    with _timed(seconds, "verify"):
        _verify(path, opset=opset, example_NCHW=example_NCHW.numpy(), num_labels=len(labels))
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    return ExportFacts(_opset(model), model.ir_version, len(model.graph.node), size, seconds)


def _export(deployed: nn.Module, example_NCHW: torch.Tensor, *, opset: int) -> onnx.ModelProto:
    training = deployed.training
    deployed.eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                deployed,
                (example_NCHW,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps every cause in classes of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputRefused(f"{type(deployed).__name__} cannot be exported to ONNX: {reason}") from error
    finally:
        deployed.train(training)
    assert program is not None
    return program.model_proto


def _describe(model: onnx.ModelProto, preprocessing: Preprocessing, labels: Sequence[str], metadata: Mapping[str, str]) -> None:
    model.producer_name, model.producer_version = "model-upgrade-toolkit", __version__
    model.doc_string = ""
    properties = {
        "labels": json.dumps(list(labels), ensure_ascii=False),
        "preprocessing": json.dumps(asdict(preprocessing), sort_keys=True),
        **metadata,
    }
    for key in sorted(properties):
        model.metadata_props.add(key=key, value=properties[key])


def _save(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() < EXTERNAL_ABOVE_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", all_tensors_to_one_file=True)


def _verify(path: Path, *, opset: int, example_NCHW: np.ndarray, num_labels: int) -> None:
    """Read back what was asked for; raises `InputRefused` naming the first thing that is not so."""
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    problems = []
    if _opset(model) != opset:
        problems.append(f"opset {_opset(model)} instead of {opset}")
    for kind, values, name in (("input", model.graph.input, INPUT), ("output", model.graph.output, OUTPUT)):
        if [value.name for value in values] != [name]:
            problems.append(f"{kind}s {[value.name for value in values]} instead of ['{name}']")
        elif not values[0].type.tensor_type.shape.dim[0].dim_param:
            problems.append(f"the batch dimension of {kind} '{name}' is fixed")
    if not problems:
        runner = OnnxRunner(path, threads=1, optimisation="off")
        for batch in UNSEEN_BATCHES:
            shape = runner(np.resize(example_NCHW, (batch, *example_NCHW.shape[1:]))).shape
            if shape != (batch, num_labels):
                problems.append(f"at batch {batch} the output has shape {shape} instead of {(batch, num_labels)}")
    if problems:
        raise InputRefused(f"the exported graph is not what was asked for: {'; '.join(problems)}.")


def _opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - started, 3)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's prints, logs and warnings off the terminal; what they warn of is verified afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
