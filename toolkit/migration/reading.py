"""Reading a checkpoint file of unknown origin: tensors out, nothing run.

What a file is, is seen from its first bytes, not from its ending. Pickles are read by torch's restricted unpickler alone
(`weights_only=True`), which builds tensors and plain containers and refuses everything else; damaged files make it raise
nine kinds of exception, so all of them become one error that names the file. Addresses are never read: a download is a
separate, explicit step (`toolkit.migration.sources`).
"""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import EnvironmentProblem, InputRefused, UsageError
from toolkit.migration.unwrapping import unwrap
from toolkit.models.torchscript_program import is_program, open_program

SAFETENSORS = ".safetensors"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", SAFETENSORS)

RESAVE = "saved = torch.load('{name}', weights_only=False); torch.save(saved{weights}, 'weights.pt')"
HOSTILE = {"os", "posix", "nt", "subprocess", "sys", "socket", "shutil", "pty", "runpy", "importlib", "ctypes", "webbrowser"}
HOSTILE_BUILTINS = {"eval", "exec", "compile", "open", "getattr", "__import__"}
ENTRY = "state_dict"  # of a training script's checkpoint
ENTRY_BYTES = b"X\x0a\x00\x00\x00state_dict"  # as torch's pickles write this text

PLAIN_TYPES = [
    argparse.Namespace,
    np.dtype,
    np.float64,
    np.float32,
    np.int64,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file held: tensors by name in the file's order, and what was peeled off to get at them."""

    tensors: Mapping[str, Tensor]
    entry: str
    notes: tuple[str, ...]


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, in its order, wrappers and prefixes removed. Raises as `open_checkpoint`."""
    return dict(open_checkpoint(path).tensors)


def open_checkpoint(path: Path | str, *, entry: str = "") -> Checkpoint:
    """Read a `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors` file; `entry` names the part that holds the weights.

    A TorchScript program is loaded as one (`open_program`) and gives its state dict.
    Without `entry` the part is found; a file with several (`state_dict` and `state_dict_ema`) is refused with their names.
    Raises `UsageError` for a missing file or an unknown entry, `EnvironmentProblem` for one that may not be read, and
    `InputRefused`, naming the file, for one that is damaged, holds code, or holds no weights.
    """
    file = _existing(path)
    program = is_program(file)
    content = _program_weights(file) if program else _load(file)
    tensors, found, notes = unwrap(content, entry=entry, origin=str(file))
    if program:
        notes = ("weights taken from a TorchScript program, whose own computation was left behind", *notes)
    odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]
    if odd:
        raise InputRefused(
            f"{file}: '{odd[0]}' is quantised or sparse ({len(odd)} such tensors). Adopt the float checkpoint it was made from."
        )
    return Checkpoint(tensors, found, notes)


def _existing(path: Path | str) -> Path:
    if re.match(r"[a-z][a-z0-9+.-]*://", str(path), re.IGNORECASE):
        raise InputRefused(f"{path} is an address; checkpoints are read from files only. Download it, check it, give its path.")
    file = Path(path).expanduser()
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if p.suffix in SUFFIXES)
        raise UsageError(f"checkpoint {file} is a directory; name a file in it ({', '.join(inside[:5]) or 'it holds none'}).")
    if not file.is_file():
        nearby = sorted(p.name for p in file.parent.glob("*") if p.suffix in SUFFIXES) if file.parent.is_dir() else []
        there = f" {file.parent} holds {', '.join(nearby[:5])}." if nearby else ""
        raise UsageError(f"There is no checkpoint {file}.{there}")
    try:
        with file.open("rb"):
            return file
    except OSError as error:
        raise EnvironmentProblem(f"Cannot read {file}: {error.strerror}. Give yourself read permission.") from error


def _load(file: Path) -> Any:
    if _is_safetensors(file):
        try:
            return load_file(file)
        except (SafetensorError, ValueError, OSError, KeyError) as error:
            raise _damaged(file, error) from error
    if file.suffix == SAFETENSORS:
        raise _damaged(file, "it does not begin as a safetensors file does")
    _refuse_exported(file)
    try:
        with torch.serialization.safe_globals(PLAIN_TYPES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on formats; the file is read or refused here
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # garbage raises anything; all of it means the same to the user
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise _holds_code(file, named.group(1)) from error
        raise _damaged(file, error) from error


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and length <= file.stat().st_size - 8


def _refuse_exported(file: Path) -> None:
    """An exported program (.pt2) may run what it holds while it is loaded, even where torch is told to read weights only."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return
    if file.suffix == ".pt2" or "archive_format" in names:
        raise InputRefused(f"{file} is an exported program (.pt2), whose loading can run code. Save the state dict instead.")


def _program_weights(file: Path) -> dict[str, Tensor]:
    weights = open_program(file).state_dict()
    if not weights:
        raise InputRefused(
            f"{file} is a TorchScript program with its weights frozen into it, so no layer's can be told apart. Adopt it as it "
            "is (architecture=torchscript), or take the checkpoint it was made from."
        )
    return dict(weights)


def _holds_code(file: Path, name: str) -> InputRefused:
    package, function = name.partition(".")[0], name.rpartition(".")[2]
    builtin = package in ("builtins", "__builtin__", function)  # torch leaves the module of builtins out
    if package in HOSTILE or (builtin and function in HOSTILE_BUILTINS):
        return InputRefused(
            f"{file} calls {name}, which no checkpoint needs: reading it would run code from the file, so it was not read. Do "
            "not load it by other means either; take the weights from where they came."
        )
    wrapped = _has_entry(file)
    what = "a training checkpoint with more than weights in it" if wrapped else "a whole pickled model"
    weights = f"['{ENTRY}']" if wrapped else ".state_dict()"
    return InputRefused(
        f"{file} holds an object of {name}, not tensors alone. Reading it would run code from the file, so it was not read. If "
        f"it is {what} that you trust, save its weights in the environment that wrote it, and adopt those: "
        + RESAVE.format(name=file.name, weights=weights)
    )


def _has_entry(file: Path) -> bool:
    """Whether a pickle names an entry `state_dict`, seen from its bytes."""
    try:
        with zipfile.ZipFile(file) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    except (zipfile.BadZipFile, OSError, ValueError, StopIteration):
        content = file.read_bytes()
    return ENTRY_BYTES in content


def _damaged(file: Path, reason: object) -> InputRefused:
    text = re.sub(r"\s+", " ", str(reason)).strip() or type(reason).__name__
    if " " not in text:
        text = "its content has another form"
    if "weights_only" in text:  # torch's message goes on to advise reading the file unsafely
        text = "it is a damaged pickle, or one that holds more than tensors, and reading that could run code"
    return InputRefused(
        f"{file} ({file.stat().st_size:,} bytes) is damaged or no checkpoint: {text[:160]}. Copy it again from where it came."
    )
