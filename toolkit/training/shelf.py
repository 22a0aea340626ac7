"""Tensors computed once, on disk: one memory-mapped safetensors file, which may be larger than memory and outlasts the process.

A run that was stopped takes up what it had computed, where the weights that gave it are the same. The file is written a batch
at a time, under another name until it is whole.

Shapes: N samples.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from toolkit.bundle.atomic import environment_errors
from toolkit.training import processes
from toolkit.training.feed import Split

FORMATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
SHARE_OF_DISK = 0.5
"""What may be taken of the disk's free space."""


class Shelf:
    """One row a sample for each split, to be stored at `path` under `key`, which names all that the rows depend on."""

    def __init__(self, path: Path, *, key: str, counts: Mapping[Split, int]) -> None:
        self.path, self.key, self.counts = path, key, counts
        self._partial = path.with_name(f"{path.name}.part")
        self._rows: dict[Split, np.memmap] = {}
        self._filled: dict[Split, int] = dict.fromkeys(counts, 0)

    def stored(self) -> dict[Split, Tensor] | None:
        """What lies at `path` under this key, mapped; None where nothing does."""
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get("key") != self.key:
                    return None
                return {split: _laid_out(file.get_tensor(split), facts["layout"]) for split in self.counts}
        except (OSError, SafetensorError, KeyError):
            return None

    @property
    def begun(self) -> bool:
        """Whether a row has been put."""
        return bool(self._rows)

    def fits(self, features: Tensor) -> bool:
        """Whether the disk takes a row like those of `features` (N, ...) for every sample, from each process."""
        with environment_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        wanted = processes.world_size() * sum(self.counts.values()) * features.nbytes // len(features)
        return wanted <= SHARE_OF_DISK * shutil.disk_usage(self.path.parent).free

    def put(self, split: Split, features: Tensor) -> None:
        """Store the next rows (N, ...) of `split`; all rows have one shape and number format."""
        features = features.cpu()
        layout = _layout(features)
        if not self._rows:
            self._create(features, layout)
        stored = features.permute(0, 2, 3, 1) if layout == "NHWC" else features
        begin = self._filled[split]
        self._rows[split][begin : begin + len(stored)] = _bytes(stored)
        self._filled[split] = begin + len(stored)

    def close(self) -> dict[Split, Tensor]:
        """The file is whole: give it its name, and return its tensors, mapped."""
        assert self._filled == dict(self.counts), "a row is missing"
        for rows in self._rows.values():
            rows.flush()
        self._rows.clear()
        with environment_errors(self.path):
            os.replace(self._partial, self.path)
        found = self.stored()
        assert found is not None
        return found

    def discard(self) -> None:
        """Forget what was put so far."""
        self._rows.clear()
        self._partial.unlink(missing_ok=True)

    def _create(self, features: Tensor, layout: str) -> None:
        shape = list((features.permute(0, 2, 3, 1) if layout == "NHWC" else features).shape[1:])
        row_bytes = features.nbytes // len(features)
        header: dict[str, object] = {"__metadata__": {"key": self.key, "layout": layout}}
        offset = 0
        for split, count in self.counts.items():
            end = offset + count * row_bytes
            header[split] = {"dtype": FORMATS[features.dtype], "shape": [count, *shape], "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        with environment_errors(self._partial):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._partial, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.flush()
                _reserve(file.fileno(), 8 + len(text) + offset)
            begin = 8 + len(text)
            for split, count in self.counts.items():
                self._rows[split] = np.memmap(self._partial, np.uint8, "r+", offset=begin, shape=(count, row_bytes))
                begin += count * row_bytes


def key_of(net: nn.Module, *facts: object) -> str:
    """A digest of the frozen weights and statistics of `net`, and of `facts`: what frozen features depend on."""
    digest = hashlib.sha256(repr((torch.__version__, *facts)).encode())
    for name, module in net.named_modules():
        own = dict(module.named_parameters(name, recurse=False))
        if any(parameter.requires_grad for parameter in own.values()):
            continue
        for full_name, tensor in [*own.items(), *module.named_buffers(name, recurse=False)]:
            digest.update(full_name.encode())
            if tensor.numel():
                digest.update(_bytes(tensor.detach().cpu().unsqueeze(0)).tobytes())
    return digest.hexdigest()


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Make room on the disk now, where the system can: a mapping that finds it full later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)


def _layout(features: Tensor) -> str:
    """NHWC where the tensor lies so in memory and in no other way."""
    nhwc = features.dim() == 4 and not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    return "NHWC" if nhwc else "rows"


def _laid_out(stored: Tensor, layout: str) -> Tensor:
    return stored.permute(0, 3, 1, 2) if layout == "NHWC" else stored


def _bytes(tensor: Tensor) -> np.ndarray:
    """The rows (N, ...) of `tensor` as bytes (N, bytes a row)."""
    return tensor.contiguous().view(len(tensor), -1).view(torch.uint8).numpy()
