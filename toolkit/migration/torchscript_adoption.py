"""A TorchScript program in service becomes a bundle as it is: judged before it is loaded, described by running it.

A program declares next to nothing, so what it takes is told (`GraphOptions`, as for an ONNX graph) and what it returns is seen:
the number of labels, whether it answers with probabilities, whether it takes more than one image at once.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.bundle import Architecture, Contract, Measurement, Preprocessing, TensorSpec
from toolkit.bundle.atomic import sha256_file
from toolkit.errors import InputRefused, UsageError
from toolkit.migration.adoption import Overrides, overridden
from toolkit.migration.as_found import AsFound
from toolkit.migration.onnx_contract import GraphOptions
from toolkit.models import Deployed
from toolkit.models.torchscript import FILE, KEY, Scripted
from toolkit.models.torchscript_program import open_program, operators

NUM_PROBES = 4
SUM_TOLERANCE = 1e-3


def from_program(checkpoint: Path | str, *, preprocessing: Overrides = None, kwargs: Mapping[str, Any]) -> AsFound:
    """The TorchScript program at `checkpoint`, judged, loaded and run; `kwargs` are the `GraphOptions`.

    `preprocessing` says how the code that serves the program prepares its images. Raises `InputRefused` for a program that is
    unsafe, damaged or does not classify images, `UsageError` for what must be given.
    """
    path, options, notes = Path(checkpoint).expanduser(), GraphOptions.of(kwargs), list[str]()
    if not path.is_file():
        raise UsageError(f"There is no TorchScript program {path}.")
    prepared = _preprocessing(options, preprocessing, str(path))
    program = open_program(path).eval()
    contract, num_labels = _probed(program, options, prepared, str(path), notes)
    digest, used = sha256_file(path), operators(program)
    num_parameters = sum(tensor.numel() for tensor in program.parameters())
    measurements = (
        Measurement("num_operators", len(used), unit="operators"),
        Measurement("num_parameters", num_parameters, unit="parameters"),
    )
    if not num_parameters:
        notes.append("the weights are frozen into the program's constants")
    details = {"checkpoint": str(path), "sha256": digest, "operators": used, "notes": notes}
    recipe = {"checkpoint": {"file": path.name, "sha256": digest}, "options": options}
    return AsFound(Architecture(KEY), num_labels, prepared, contract, {FILE: path}, recipe, measurements, details)


def _preprocessing(options: GraphOptions, overrides: Overrides, origin: str) -> Preprocessing:
    """The user's word: the size always, mean and standard deviation where the program takes normalised images."""
    if isinstance(overrides, Preprocessing):
        return overrides
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if options.input is None:
        raise UsageError(
            f"{origin} is a program that does not say in which range it takes images. Give kwargs={{input:pixels}} when it "
            "takes 0..255, or kwargs={input:normalised} with preprocessing.mean and preprocessing.std as where it is served."
        )
    if "size_px" not in given:
        raise UsageError(
            f"{origin} does not say which size it takes: give preprocessing.size_px=[height,width] as it is served."
        )
    normalises = {"mean", "std", "value_range"} & set(given)
    if options.input == "normalised" and not {"mean", "std"} <= set(given):
        raise UsageError(f"{origin} takes normalised images: give preprocessing.mean and preprocessing.std.")
    if options.input == "pixels" and normalises:
        raise UsageError(f"{origin} takes pixels as they are: leave preprocessing.{min(normalises)} out.")
    num_channels = 1 if given.get("colour") == "L" else 3
    identity = Preprocessing(
        (1, 1),
        mean=(0.0,) * num_channels,
        std=(1.0,) * num_channels,
        colour="L" if num_channels == 1 else "RGB",
        value_range=(0.0, 255.0) if options.input == "pixels" else (0.0, 1.0),
    )
    return overridden(identity, overrides)


def _probed(
    program: torch.jit.ScriptModule, options: GraphOptions, prepared: Preprocessing, origin: str, notes: list[str]
) -> tuple[Contract, int]:
    """The contract as the program keeps it, and its number of labels: from one image, then from several at once."""
    shape = (NUM_PROBES, prepared.num_channels, *prepared.size_px)
    pixels_NCHW = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()
    contract = _contract(program, options, prepared)
    contract = _running(program, contract, prepared, pixels_NCHW[:1], options, origin)
    alone_NK = _answers(program, contract, prepared, pixels_NCHW, origin, one_by_one=True)
    try:
        together_NK = _answers(program, contract, prepared, pixels_NCHW, origin)
    except InputRefused as refusal:
        notes.append(f"the program runs one image at a time only ({refusal})")
        contract = replace(contract, inputs=(replace(contract.inputs[0], dims=(1, *contract.inputs[0].dims[1:])),))
        together_NK = alone_NK
    if not bool(torch.isfinite(alone_NK).all()):
        raise InputRefused(f"{origin}: its answers to images are not finite; its weights are damaged.")
    if not torch.allclose(alone_NK, together_NK, rtol=1e-3, atol=1e-3 * float(alone_NK.abs().max())):
        raise InputRefused(
            f"{origin} answers an image otherwise when others are in its batch: it was saved in training mode. "
            "Save it again after model.eval()."
        )
    sums_to_one = bool(((alone_NK.sum(1) - 1).abs() < SUM_TOLERANCE).all() and (alone_NK >= 0).all())
    if options.output == "probabilities" and not sums_to_one:
        raise UsageError(
            f"{origin}: its answers do not add up to 1, so they are no probabilities: give kwargs={{output:logits}}."
        )
    if options.output is None and sums_to_one:
        notes.append("its answers add up to 1: taken for probabilities (kwargs.output says otherwise)")
    meaning = options.output or ("probabilities" if sums_to_one else "logits")
    scores = TensorSpec("scores", "float32", ("batch", alone_NK.shape[1]), "NK", meaning)
    return replace(contract, outputs=(scores,)), alone_NK.shape[1]


def _contract(program: torch.jit.ScriptModule, options: GraphOptions, prepared: Preprocessing) -> Contract:
    taken = [value.debugName().partition(".")[0] for value in program.inlined_graph.inputs()][1:]
    layout = options.layout or "NCHW"
    sizes = {"N": "batch", "C": prepared.num_channels, "H": prepared.size_px[0], "W": prepared.size_px[1]}
    value_range = (0.0, 255.0) if options.input == "pixels" else None
    dims = tuple(sizes[axis] for axis in layout)
    images = TensorSpec(taken[0] if taken else "images", "float32", dims, layout, options.input or "pixels", value_range)
    return Contract((images,), (TensorSpec("scores", "float32", ("batch",), "", "logits"),))


def _running(
    program: torch.jit.ScriptModule,
    contract: Contract,
    prepared: Preprocessing,
    pixels_NCHW: Tensor,
    options: GraphOptions,
    origin: str,
) -> Contract:
    """The contract with the first type of image that the program takes: float32, or for pixels uint8, or float16."""
    dtypes = ("float32", "uint8") if options.input == "pixels" else ("float32", "float16")
    refusals = []
    for dtype in dtypes:
        tried = replace(contract, inputs=(replace(contract.inputs[0], dtype=dtype),))
        try:
            _answers(program, tried, prepared, pixels_NCHW, origin)
        except InputRefused as refusal:
            refusals.append(refusal)
            continue
        return tried
    raise refusals[0]


@torch.no_grad()
def _answers(
    program: torch.jit.ScriptModule,
    contract: Contract,
    prepared: Preprocessing,
    pixels_NCHW: Tensor,
    origin: str,
    *,
    one_by_one: bool = False,
) -> Tensor:
    scripted = Deployed(Scripted(program, contract, origin=origin), prepared).eval()
    return torch.cat([scripted(part) for part in (pixels_NCHW.split(1) if one_by_one else (pixels_NCHW,))])
