"""An old graph in a newer opset: onnx's version converter, and what it leaves undone.

The converter rewrites operators and leaves the IR version behind, which an opset may not allow, and the weights listed as
inputs, which keeps a runtime from treating them as constants. Whether the result computes the same is not its promise:
parity decides that.
"""

from pathlib import Path

import onnx
from onnx import helper, version_converter

from toolkit.backends.graph_files import read_graph, require_sound_files
from toolkit.backends.write import opset_of
from toolkit.errors import InputRefused, UsageError

WEIGHTS_APART_SINCE_IR = 4
LARGEST_BYTES = 2**31 - 2**20  # a graph is converted as one protobuf message
NEWEST = onnx.defs.onnx_opset_version()


def convert_opset(source: Path, target: Path, *, opset: int) -> int:
    """Write the graph at `source` to `target` in `opset`, its names as they were, and return the IR version it then has.

    Raises `UsageError` for an opset that is not newer or that onnx does not know, `InputRefused` for a graph that cannot be
    converted.
    """
    require_sound_files(source)
    before = opset_of(read_graph(source))
    if not before < opset <= NEWEST:
        raise UsageError(f"opset is {opset}; the graph has {before}: choose one above it, up to {NEWEST}.")
    model = onnx.load(source)
    if model.ByteSize() > LARGEST_BYTES:
        raise InputRefused(f"{source} is larger than 2 GiB, which onnx's converter cannot hold: export it again instead.")
    try:
        converted = version_converter.convert_version(model, opset)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputRefused(f"{source} cannot be converted from opset {before} to {opset}: {first}. Try one between.") from error
    converted.ir_version = max(model.ir_version, helper.find_min_ir_version_for(converted.opset_import))
    if converted.ir_version >= WEIGHTS_APART_SINCE_IR:
        held = {tensor.name for tensor in converted.graph.initializer}
        inputs = [value for value in converted.graph.input if value.name not in held]
        del converted.graph.input[:]
        converted.graph.input.extend(inputs)
    target.write_bytes(converted.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(target))
    except onnx.checker.ValidationError as error:
        raise InputRefused(f"{source} in opset {opset} is no valid graph: {str(error).strip().splitlines()[0]}") from error
    if opset_of(converted) != opset:
        raise InputRefused(f"{source}: asked for opset {opset}, the converter gave {opset_of(converted)}.")
    return int(converted.ir_version)
