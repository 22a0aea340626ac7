"""Precisions: which graph of a bundle is in one, and which of them torch may run a module in on this processor.

bfloat16 and float16 are fast only where the processor has instructions for them; elsewhere torch converts back and forth
around every operator, and a model that fits the format in theory answers 8 to 44 times slower than in float32. Such a run is
refused: its numbers would say something about the conversion and nothing about the model.
"""

import re
from pathlib import Path

import torch

from toolkit.bundle import GRAPHS, Bundle
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
NEEDED = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},  # x86, x86, ARM
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
FLAGS = re.compile(r"^(?:flags|Features)\s*: (.*)$", re.MULTILINE)


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the first processor says it can do, in Linux's words; nothing where nobody says."""
    try:
        found = FLAGS.search(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def autocast_dtype(precision: str, *, device: str = "cpu", flags: set[str] | None = None) -> torch.dtype | None:
    """What autocast turns a module's heavy operators into for `precision`; None for fp32, which needs none.

    `flags` are the processor's (None: this machine's). Raises `UsageError` for a precision that torch does not run a module
    in, `EnvironmentProblem` for one that this processor does not compute in.
    """
    if precision == "fp32":
        return None
    if precision not in AUTOCAST:
        raise UsageError(f"torch runs a module in fp32, bf16 or fp16, not in {precision}: use onnxruntime or openvino for it.")
    if device == "cuda":
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise EnvironmentProblem("this GPU has no bf16 instructions (they came with Ampere): choose fp16 or fp32.")
        return AUTOCAST[precision]
    if not NEEDED[precision] & (processor_flags() if flags is None else flags):
        raise EnvironmentProblem(
            f"this processor has no {precision} instructions ({' or '.join(sorted(NEEDED[precision]))}), and torch would "
            "convert around every operator, 8 to 44 times slower than fp32: choose fp32, or int8 with onnxruntime or openvino."
        )
    return AUTOCAST[precision]


def graph_in(bundle: Bundle, precision: str) -> Path:
    """The bundle's graph in `precision`. Raises `UsageError` for one that no graph has, `InputRefused` for one it lacks."""
    if precision not in GRAPHS:
        raise UsageError(f"a graph is exported in {', '.join(GRAPHS)}, not in {precision}: choose one of these.")
    if not bundle.has(GRAPHS[precision]):
        held = [known for known, name in GRAPHS.items() if bundle.has(name)]
        raise InputRefused(
            f"bundle {bundle.short} has no {GRAPHS[precision]}, its graph in {precision} (it holds "
            f"{', '.join(held) or 'none'}). Write it with: "
            f"toolkit export bundle=... 'precisions=[{','.join([*held, precision])}]'"
        )
    return bundle.file(GRAPHS[precision])
