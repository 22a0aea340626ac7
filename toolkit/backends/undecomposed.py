"""The exporter's decomposition of a traced program, left out where nothing needs it.

`torch.onnx.export` traces every program a second time, to replace operators that have no ONNX form and to make in-place ones
functional: a third to a half of the time a small convolutional network takes. Such networks mostly consist of operators that
have a form. Here the few exceptions are replaced in the traced graph itself, and the second trace is left out when all that
remains has a form. It reaches into a private part of torch, so it is a shortcut only: where that looks different, or where the
graph holds anything else, the exporter does it its own way. The caller compares the graph's answers with the module's in any
case.
"""

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten


@contextlib.contextmanager
def decomposition_spared() -> Iterator[None]:
    """Within the block, exports do not decompose programs that need no decomposition. Not for concurrent exports."""
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        original, known = _fx_passes.decompose_with_registry, _decomp.get_onnx_implemented_overloads
    except (ImportError, AttributeError):  # private parts of another version: the exporter's own way
        yield
        return

    def decompose(program: Any, registry: Any) -> Any:
        if _straight(program.graph_module, {operator.getitem, *known(registry)}):
            return program
        return original(program, registry)

    _fx_passes.decompose_with_registry = decompose
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = original


def _straight(module: fx.GraphModule, known: set[Callable[..., Any]]) -> bool:
    """Replace what has no ONNX form by what has, in place and keeping the meaning; whether nothing without one is left."""
    _simplify(module.graph)
    _functionalise(module.graph)
    module.recompile()
    return all(node.target in known for node in module.graph.nodes if node.op == "call_function")


def _simplify(graph: fx.Graph) -> None:
    """Drop assertions and what does nothing (casts to the same type, dropout in evaluation); the global pool is a mean."""
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-2, -1], True)


def _does_nothing(node: fx.Node) -> bool:
    if node.target is aten.to.dtype:
        (given, dtype), more = node.args[:2], (*node.args[2:], *node.kwargs.values())
        return isinstance(given, fx.Node) and given.meta["val"].dtype == dtype and not any(more)
    return node.target in (aten.dropout.default, aten.dropout_.default) and node.args[2] is False


def _functionalise(graph: fx.Graph) -> None:
    """Give each in-place operator on a tensor that no view sees its functional form; what reads the tensor later reads that."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        functional = _functional_form(node)
        changed = node.args[0] if functional is not None else None
        if functional is None or not isinstance(changed, fx.Node) or changed.op != "call_function" or _may_alias(changed):
            continue
        if any(_may_alias(user) for user in changed.users if user is not node):
            continue
        node.target = functional
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)


def _functional_form(node: fx.Node) -> OpOverload | None:
    """`aten.relu` for a node of `aten.relu_`, and the like; None for a node that changes nothing, or that has no such form."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return None
    namespace, name = node.target._schema.name.split("::")
    packet = getattr(aten, name[:-1], None) if namespace == "aten" and name.endswith("_") else None
    return getattr(packet, node.target._overloadname, None)


def _may_alias(node: fx.Node) -> bool:
    """Whether the node's result may share memory with its input."""
    if not isinstance(node.target, OpOverload):
        return node.op == "call_function"  # getitem, of a chunk
    schema = node.target._schema
    return not schema.is_mutable and any(result.alias_info is not None for result in schema.returns)
