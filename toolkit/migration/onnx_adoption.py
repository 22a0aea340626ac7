"""An ONNX graph in service becomes a bundle as it is: no module behind it, nothing in its bytes changed.

It is checked in the order of what could do harm: where its tensors lie, before anything follows those names; whether it is a
graph; whether onnxruntime loads it; and what it answers to images, because what a graph declares and what it does differ.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from toolkit.backends.adapted import AdaptedRunner
from toolkit.backends.graph_files import external_location, external_tensors, read_graph, require_sound_files
from toolkit.backends.write import opset_of
from toolkit.bundle import GOLDEN, ONNX, Architecture, Contract, Measurement, Preprocessing
from toolkit.bundle.atomic import sha256_file
from toolkit.bundle.store import MANIFEST, WEIGHTS
from toolkit.errors import InputRefused, UsageError
from toolkit.migration.adoption import Overrides, overridden
from toolkit.migration.as_found import AsFound
from toolkit.migration.onnx_contract import GraphOptions, image_size, read_contract
from toolkit.models.restoring import GRAPH_ONLY

RESERVED = (MANIFEST, WEIGHTS, ONNX, GOLDEN)
PROBE_BATCH = 2


def from_graph(checkpoint: Path | str, *, preprocessing: Overrides = None, kwargs: Mapping[str, Any]) -> AsFound:
    """The graph at `checkpoint`, checked and run once; `kwargs` are the `GraphOptions`.

    `preprocessing` says how the code that serves the graph prepares its images; a fixed image size comes from the graph.
    Raises `InputRefused` for a graph that is unsafe, damaged or does not classify images, `UsageError` for what must be given.
    """
    path, options = Path(checkpoint), GraphOptions.of(kwargs)
    require_sound_files(path)
    model, origin = read_graph(path), str(path)
    files = _files(model, path)
    notes = _checked(path)
    contract = read_contract(model, options, origin=origin)
    prepared = _preprocessing(contract, preprocessing, origin)
    contract, num_labels = _probed(path, contract, prepared, notes)
    opset = opset_of(model)
    domains = {entry.domain: entry.version for entry in model.opset_import if entry.domain not in ("", "ai.onnx")}
    architecture = Architecture(GRAPH_ONLY, {"opset": opset, "ir_version": model.ir_version})
    digests = {name: sha256_file(file) for name, file in files.items()}
    details = {
        "checkpoint": origin,
        "sha256": digests[ONNX],
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "other_opsets": domains,
        "notes": notes,
    }
    measurements = (
        Measurement("opset", opset),
        Measurement("ir_version", model.ir_version),
        Measurement("num_nodes", len(model.graph.node), unit="nodes"),
    )
    recipe = {"checkpoint": {"file": path.name, "sha256": digests}, "options": options}
    return AsFound(architecture, num_labels, prepared, contract, files, recipe, measurements, details)


def _files(model: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """The graph and the files of its tensors, which keep their names because the graph holds them."""
    beside = sorted({external_location(tensor) for tensor in external_tensors(model)})
    for name in beside:
        if name in RESERVED:
            raise InputRefused(
                f"{path} keeps tensors in '{name}', a name that a bundle uses itself. Save it again with one data file: "
                "onnx.save_model(onnx.load(path), path, save_as_external_data=True, location='model.onnx.data')"
            )
    return {ONNX: path, **{name: path.parent / name for name in beside}}


def _checked(path: Path) -> list[str]:
    """Raise `InputRefused` for what is no valid graph; return what onnx finds odd about one that may still run."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise InputRefused(f"{path} is not a valid graph: {str(error).strip().splitlines()[0]}") from error
    try:
        onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        return [f"shape inference disagrees with the graph: {str(error).strip().splitlines()[0]}"]
    return []


def _preprocessing(contract: Contract, overrides: Overrides, origin: str) -> Preprocessing:
    """The user's word, the graph's own sizes where it fixes them, and no normalisation for a graph that takes pixels."""
    taken = contract.inputs[0]
    channels, height_px, width_px = image_size(taken)
    given = {} if isinstance(overrides, Preprocessing) else {k: v for k, v in (overrides or {}).items() if v is not None}
    size_px = (height_px, width_px) if isinstance(height_px, int) and isinstance(width_px, int) else None
    if not isinstance(overrides, Preprocessing):
        if size_px is None and "size_px" not in given:
            raise UsageError(f"{origin} takes images of any size: give preprocessing.size_px=[height,width] as it is served.")
        if taken.meaning == "normalised" and not {"mean", "std"} <= set(given):
            raise UsageError(f"{origin} takes normalised images: give preprocessing.mean and preprocessing.std.")
    num_channels = channels if isinstance(channels, int) else 1 if given.get("colour") == "L" else 3
    if num_channels not in (1, 3):
        raise InputRefused(f"{origin} takes images with {num_channels} channels; 1 (grey) or 3 (RGB) can be given.")
    identity = Preprocessing(
        size_px or (1, 1),
        mean=(0.0,) * num_channels,
        std=(1.0,) * num_channels,
        colour="L" if num_channels == 1 else "RGB",
        value_range=(0.0, 255.0) if taken.meaning == "pixels" else (0.0, 1.0),
    )
    prepared = overridden(identity, overrides)
    wanted = (channels, height_px, width_px)
    got = (prepared.num_channels, *prepared.size_px)
    if any(isinstance(w, int) and w != g for w, g in zip(wanted, got, strict=True)):
        raise UsageError(
            f"{origin} takes images of {list(wanted)} (channels, height, width); preprocessing makes {list(got)}: leave "
            "size_px and colour out, the graph fixes them."
        )
    return prepared


def _probed(path: Path, contract: Contract, preprocessing: Preprocessing, notes: list[str]) -> tuple[Contract, int]:
    """The contract as the graph keeps it, and the number of labels: found by running one grey image, then two at once."""
    grey_NCHW = np.full((1, preprocessing.num_channels, *preprocessing.size_px), 128, np.float32)
    logits_NK = AdaptedRunner(path, contract=contract, preprocessing=preprocessing, threads=1)(grey_NCHW)
    if not np.isfinite(logits_NK).all():
        raise InputRefused(f"{path}: its answer to a grey image is not finite; its weights are damaged.")
    taken, scores = contract.inputs[0], contract.outputs[0]
    if scores.meaning == "probabilities" and abs(float(np.exp(logits_NK).sum()) - 1) > 1e-2:
        raise UsageError(
            f"{path}: its answers do not add up to 1, so they are no probabilities: give kwargs={{output:logits}}."
        )
    if isinstance(taken.dims[0], str):
        try:
            AdaptedRunner(path, contract=contract, preprocessing=preprocessing, threads=1)(grey_NCHW.repeat(PROBE_BATCH, 0))
        except InputRefused as refusal:
            notes.append(f"the graph declares a free batch and runs one image at a time only ({refusal})")
            contract = replace(contract, inputs=(replace(taken, dims=(1, *taken.dims[1:])),))
    return contract, logits_NK.shape[1]
