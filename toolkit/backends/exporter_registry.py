"""The exporter's table of operators, built once a process instead of once an export.

`torch.onnx.export` translates some five hundred function bodies to syntax trees for every export, to read from each a domain it
does not use: about a third of the time a small convolutional network takes. Here the same table is listed without that and kept
by opset. It reaches into private parts of torch and onnxscript, so it is a shortcut only: where those parts look different, the
exporter builds its table itself.
"""

import contextlib
import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

_kept: dict[int, Any] = {}


@contextlib.contextmanager
def operators_kept(opset: int) -> Iterator[None]:
    """Within the block, an export to `opset` takes its operators from the kept table. Not for concurrent exports."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
        if opset not in _kept:
            _kept[opset] = _listed(opset)
    except Exception:  # private parts of another version: the exporter's own way
        yield
        return

    def from_torchlib(cls: type, opset_version: int = opset) -> Any:
        if opset_version not in _kept:
            return original.__get__(None, cls)(opset_version=opset_version)
        registry = copy.copy(_kept[opset_version])
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original


def _listed(opset: int) -> Any:
    """The exporter's registry for `opset`, with torchlib's functions listed but not translated."""
    from onnxscript.function_libs.torch_lib import ops, registration
    from torch.onnx._internal.exporter import _registration

    del ops  # imported for what it registers
    functions = [
        SimpleNamespace(qualified_name=name, function=function, is_complex=is_complex)
        for name, entry in registration.default_registry.items()
        if not name.startswith("internal::")
        for is_complex, group in ((False, entry.overloads), (True, entry.complex))
        for function in group
    ]
    api = _registration.onnxscript_apis
    original = api.get_torchlib_ops
    api.get_torchlib_ops = lambda: functions
    try:
        return _registration.ONNXRegistry.from_torchlib(opset_version=opset)
    finally:
        api.get_torchlib_ops = original
