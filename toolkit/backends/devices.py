"""Where a runner computes: the CPU, a CUDA device, or a CUDA device through TensorRT; and TF32, which would blur fp32.

On Ampere and later cards TF32 shortens the mantissa of float32 matrix products to 10 bits. onnxruntime's CUDA provider and
cuDNN have it on by default, torch's matrix products do not, so an untouched comparison of the two is one of number formats.
Here fp32 means fp32: it is off in all of them, and every runner says so in its `settings`.
"""

from typing import Any, Literal

import torch

from toolkit.errors import EnvironmentProblem, UsageError

Device = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "cpu": [("CPUExecutionProvider", {})],
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})],
    "tensorrt": [
        ("TensorrtExecutionProvider", {}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ],
}


def torch_device(device: str) -> torch.device:
    """The torch device of that name, with TF32 off. Raises `EnvironmentProblem` without CUDA, `UsageError` for tensorrt."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"torch runs on cpu or cuda, not on {device}: use onnxruntime-{device}.")
    if device == "cuda":
        if not torch.cuda.is_available():
            built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
            raise EnvironmentProblem(
                f"no CUDA device is usable here (torch {torch.__version__} is built {built}): check "
                "`nvidia-smi`, or run on the CPU."
            )
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(device)


def torch_settings(device: torch.device) -> dict[str, Any]:
    """How torch computes there, for the record."""
    if device.type != "cuda":
        return {"device": "cpu", "torch_threads": torch.get_num_threads()}
    return {
        "device": torch.cuda.get_device_name(device),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }


def free_device_bytes() -> int | None:
    """Bytes free on the CUDA device, whoever took the rest; None where there is none."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
