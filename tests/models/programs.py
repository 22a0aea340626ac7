"""TorchScript programs as services keep them, and as an attacker would write them."""

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

How = Literal["traced", "scripted", "frozen"]


def write_program(net: nn.Module, path: Path, *, how: How = "scripted", example: torch.Tensor | None = None) -> Path:
    """`net` as a TorchScript file, in the mode it is in, traced with `example`; that this is deprecated is known."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        if how == "traced":
            program = torch.jit.trace(net, torch.zeros(2, 3, 32, 32) if example is None else example)
        else:
            program = torch.jit.script(net)
        torch.jit.save(torch.jit.freeze(program) if how == "frozen" else program, path)
    return path


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with each record's content changed; `change` gets the record's name without the archive's own."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for name in archive.namelist():
            copy.writestr(name, change(name.partition("/")[2], archive.read(name)))
    return target


def load_unguarded(path: Path) -> torch.jit.ScriptModule:
    """What a careless user does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        return torch.jit.load(str(path))
