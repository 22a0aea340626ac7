"""Opening a TorchScript archive of unknown origin: judged first, loaded as what it is, never by Python's pickle.

A TorchScript file is a program, and PyTorch's own advice is to treat one as code. Two things can run in it: its forward
method, and at loading the default values and `__setstate__` methods in its source. Both speak TorchScript, which reaches the
outside through operators alone. So the archive is read once, and refused unless its source, as Python's parser sees it, and
then every graph that torch made of that source, use operators of tensors only: none that writes or reads a file, no other
library's, no native classes, no code at loading. Its pickles are read by torch's C++ reader, which builds tensors and the
program's own objects and calls nothing in Python.

What this guarantees: no Python code of the file runs, and the program can neither write nor read files, start processes nor
use the network. What it cannot: torch's C++ reader and operators are not built to withstand a hostile file, so one made for it
may crash the process or exhaust its memory. Adopt programs of your own service, not of strangers.
"""

import ast
import io
import pickletools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import InputRefused

NEEDED = ("constants.pkl", "data.pkl")  # the pickles of a program
CODE = "code/"
NAMESPACES = ("aten", "prim")
FORBIDDEN = {
    "save": "writes a file",
    "from_file": "reads and writes a file",
    "__setstate__": "runs code when it is loaded",
    "classes": "uses native classes (a quantised or lowered model does)",
    "rpc_async": "calls another process",
    "rpc_sync": "calls another process",
    "rpc_remote": "calls another process",
    "PythonOp": "calls Python",
}
PURE = ("__torch__", "torch", "collections")
DEPRECATED = r"`torch\.jit\.\w+` is (deprecated|not supported)"


def is_program(path: Path) -> bool:
    """Whether the file is a TorchScript archive, by its content."""
    try:
        return _has_program(torch._C.PyTorchFileReader(str(path)))
    except (RuntimeError, ValueError, OSError):  # what is no archive at all
        return False


def open_program(path: Path) -> torch.jit.ScriptModule:
    """The program in the file, on the CPU, in the mode it was saved in.

    Raises `InputRefused`, naming the file, for one that is no TorchScript archive, damaged, or reaches outside its tensors.
    """
    content = path.read_bytes()
    try:
        reader = _reader(content)
        if not _has_program(reader):
            raise InputRefused(
                f"{path} is not a TorchScript program: save one with torch.jit.save(torch.jit.trace(...), path)."
            )
        _require_pure_pickles(reader, path)
        _require_pure_source(reader, path)
        program = _loaded(content)
    except InputRefused:
        raise
    except Exception as error:  # damage makes torch's reader raise anything; all of it means the same to the user
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputRefused(
            f"{path} is a damaged TorchScript archive: {first[:160]}. Copy it again from where it came."
        ) from error
    for parameter in program.parameters():
        parameter.requires_grad_(False)  # nobody trains it, and a copy of one that is trained is no leaf
    for name, module in program.named_modules():
        if not hasattr(module, "training"):
            module.training = False  # freezing takes the mode away, which torch's own tools ask for
        for method in module._c._method_names():
            graph = module._c._get_method(method).inlined_graph
            _require_pure_graph(graph, path, f"{name}.{method}".strip("."))
    return program


def operators(program: torch.jit.ScriptModule) -> list[str]:
    """The operators that the program's forward method uses, sorted."""
    return sorted({node.kind() for node in _nodes(program.inlined_graph) if node.kind().startswith("aten::")})


def _reader(content: bytes) -> Any:
    """torch's own archive reader: what is judged is what will be loaded, whatever other readers of zip files would see."""
    return torch._C.PyTorchFileReader(io.BytesIO(content))


def _has_program(reader: Any) -> bool:
    records = reader.get_all_records()
    return all(name in records for name in NEEDED) and any(name.startswith(CODE) for name in records)


def _loaded(content: bytes) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DEPRECATED)  # that torch has left TorchScript is why such files come here
        return torch.jit.load(io.BytesIO(content), map_location="cpu")


def _require_pure_pickles(reader: Any, path: Path) -> None:
    """The pickles name the program's own types and torch's tensors only; read here as opcodes, of which none is executed."""
    for record in NEEDED:
        for opcode, argument, _ in pickletools.genops(reader.get_record(record)):
            if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise _refused(path, f"its {record} is not as TorchScript writes it ({opcode.name})")
            parts = str(argument).replace(" ", ".").split(".") if opcode.name == "GLOBAL" else ["torch"]
            if parts[0] not in PURE:
                raise _refused(path, f"its {record} holds an object of {'.'.join(parts)}, no tensor")
            if "classes" in parts:
                raise _refused(path, f"it {FORBIDDEN['classes']}")


def _require_pure_source(reader: Any, path: Path) -> None:
    for record in reader.get_all_records():
        if not record.startswith(CODE) or not record.endswith(".py"):
            continue
        text = reader.get_record(record).decode("utf-8")
        try:
            tree = ast.parse(text)
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise _refused(path, f"its source {record} cannot be read") from error
        for name in _names(tree):
            if name in FORBIDDEN:
                raise _refused(path, f"its source {record} names '{name}', which {FORBIDDEN[name]}")
        for space in _operator_spaces(tree):
            if space not in NAMESPACES:
                raise _refused(path, f"its source {record} uses the operators of '{space}', not torch's own")


def _names(tree: ast.AST) -> Iterator[str]:
    """Every name in the source, and every text, since `getattr` takes names as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _operator_spaces(tree: ast.AST) -> Iterator[str]:
    """`x` of every `ops.x.name`; a bare `ops`, which could be looked into by another route, is a space of its own."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ops":
            inside.add(id(node.value))
            yield node.attr
    if any(isinstance(node, ast.Name) and node.id == "ops" and id(node) not in inside for node in ast.walk(tree)):
        yield "ops"


def _require_pure_graph(graph: Any, path: Path, method: str) -> None:
    """What torch understood: after inlining, nothing but operators of the known kinds is left."""
    for node in _nodes(graph):
        space, _, name = node.kind().partition("::")
        if space not in NAMESPACES or name in FORBIDDEN or name in ("CallMethod", "CallFunction"):
            raise _refused(path, f"its method {method} calls {node.kind()}")


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
        if node.hasAttribute("Subgraph"):
            yield from _nodes(node.g("Subgraph"))


def _refused(path: Path, reason: str) -> InputRefused:
    return InputRefused(
        f"{path} is a TorchScript program that reaches outside its tensors: {reason}. It was not run. Where the model can be "
        "built in Python, save its weights instead: torch.save(model.state_dict(), 'weights.pt')"
    )
