"""The old model as a file that still runs: a TorchScript or ONNX twin of a checkpoint, to be answered alike.

A twin does not say whether it takes pixels or normalised images. Unless the user does, both readings are tried, and the one
under which it agrees with the model is taken: agreement on photographs is proof, not a guess.

Shapes: N batch, C channels, H height, W width, K classes.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
from torch import nn

from toolkit.backends import RunnerModule
from toolkit.backends.adapted import AdaptedRunner
from toolkit.backends.graph_files import read_graph, require_sound_files
from toolkit.bundle import Contract, Preprocessing, TensorSpec
from toolkit.bundle.atomic import sha256_file
from toolkit.errors import UsageError
from toolkit.migration.onnx_contract import GraphOptions, read_contract
from toolkit.models import Deployed
from toolkit.models.torchscript import Scripted
from toolkit.models.torchscript_program import is_program, open_program

Reading = Literal["normalised", "pixels"]


@dataclass(frozen=True, eq=False)
class Twin:
    """A model to be compared: `deployed` takes pixels 0..255 (N, C, H, W) at the model's size and gives logits (N, K).

    `probabilities`: its scores are logarithms of probabilities. `float64`: it can be run in double precision.
    """

    deployed: nn.Module
    description: str = ""
    probabilities: bool = False
    float64: bool = True


def twin_file(call: str) -> Path | None:
    """The file that `legacy=<call>` names (`old.onnx`, or with settings `old.onnx(input='pixels')`); None for a callable.

    Raises `UsageError` for a path whose file is not there.
    """
    path = _parts(call)[0]
    if path.is_file():
        return path
    if path.suffix.lower() in (".onnx", ".ts", ".pt", ".torchscript") and ":" not in call.partition("(")[0]:
        raise UsageError(f"legacy={call}: there is no file {path}.")
    return None


def open_twins(call: str, preprocessing: Preprocessing) -> Iterator[Twin]:
    """The readings of the file in `legacy=<call>` worth trying, for a model with this `preprocessing`.

    Raises `UsageError` for settings that are none, `InputRefused` for a file that is unsafe, damaged or of another kind.
    """
    path, options = _parts(call)
    for reading in (options.input,) if options.input else get_args(Reading):
        chosen = replace(options, input=reading)
        if is_program(path):
            yield _script_twin(path, chosen, preprocessing)
            continue
        require_sound_files(path)
        model = read_graph(path)
        if reading == "normalised" and options.input is None and _takes_bytes(model):
            continue
        yield _graph_twin(path, model, chosen, preprocessing)


def _script_twin(path: Path, options: GraphOptions, preprocessing: Preprocessing) -> Twin:
    layout = options.layout or "NCHW"
    sizes = {"N": "batch", "C": preprocessing.num_channels, "H": preprocessing.size_px[0], "W": preprocessing.size_px[1]}
    dims = tuple(sizes[axis] for axis in layout)
    taken = TensorSpec("images", "float32", dims, layout, options.input or "normalised")
    meaning = options.output or "logits"
    contract = Contract((taken,), (TensorSpec("scores", "float32", ("batch",), "", meaning),))
    scripted = Scripted(open_program(path), contract, origin=str(path)).eval()
    probabilities = meaning == "probabilities"
    if options.input == "pixels":  # it normalises by constants of its own, whose rounding a float64 run would show
        return Twin(scripted, "TorchScript, pixels", probabilities, float64=False)
    return Twin(Deployed(scripted, preprocessing), "TorchScript, normalised", probabilities)


def _graph_twin(path: Path, model: onnx.ModelProto, options: GraphOptions, preprocessing: Preprocessing) -> Twin:
    contract = read_contract(model, options, origin=str(path))
    runner = AdaptedRunner(path, contract=contract, preprocessing=preprocessing, threads=1)
    module = RunnerModule(runner, digest=sha256_file(path))
    return Twin(module, f"ONNX, {options.input}", contract.outputs[0].meaning == "probabilities", float64=False)


def _takes_bytes(model: onnx.ModelProto) -> bool:
    held = {tensor.name for tensor in model.graph.initializer}
    taken = [value for value in model.graph.input if value.name not in held]
    return bool(taken) and taken[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def _parts(call: str) -> tuple[Path, GraphOptions]:
    """The path and the settings in brackets behind it."""
    found = re.fullmatch(r"(.+?)(\(.*\))?", call.strip(), re.DOTALL)
    if found is None:
        raise UsageError("legacy is empty: give <module>:<callable>, or a TorchScript or .onnx file.")
    path = Path(found[1]).expanduser()
    if not path.is_file() or not found[2]:
        return path, GraphOptions()
    try:
        node = ast.parse(f"f{found[2]}", mode="eval").body
        assert isinstance(node, ast.Call)
        settings: dict[str, Any] = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        if node.args:
            raise ValueError("name each setting")
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"legacy={call}: settings look like {path.name}(input='pixels', output='probabilities') ({error})."
        ) from error
    return path, GraphOptions.of(settings)
