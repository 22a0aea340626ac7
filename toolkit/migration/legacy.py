"""Proof by running both: the legacy model and its successor answer the same images.

Names and shapes can agree while the computation differs (another epsilon, another padding, another activation). Where the
legacy model can still run, in its own code or as a file, both get the same pixels: random ones, and real photographs, for
the tensors of a checkpoint come without data. Equal bits prove the adoption. Where the bits differ, both are run again in
float64: rounding shrinks by nine orders of magnitude there, a different computation does not. A file that runs in float32
alone is held against the rounding of the successor instead (`toolkit.backends.noise`).

Shapes: N batch, C channels, H height, W width, K classes.
"""

import ast
import copy
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from toolkit.backends.noise import measure_noise
from toolkit.bundle import Preprocessing
from toolkit.data.preprocessing import render
from toolkit.errors import InputRefused, UsageError
from toolkit.migration.twins import Twin
from toolkit.models import Deployed

NUM_RANDOM = 4
NUM_RUNS = 5  # of float32, which measure its rounding
ROUNDING = 1e-9  # of the logits' largest magnitude, in float64
MAX_FLOORS = 8.0  # beyond this many floors a fault is likelier than rounding, as in the parity check


@dataclass(frozen=True)
class Comparison:
    """How far two models' logits lie apart on `num_images` images, in float32 and, when not bit-exact, in float64.

    Where the old one does not run in float64, `error_floors` is its largest error in multiples of the new one's own rounding.
    """

    num_images: int
    bit_exact: bool
    max_abs_difference: float
    max_abs_difference_float64: float | None
    max_abs_logit: float
    top1_agreement: float
    error_floors: float | None = None

    @property
    def explained(self) -> bool:
        """Whether the two compute the same function: bit-exact, or apart by rounding alone."""
        if self.bit_exact:
            return True
        if self.max_abs_difference_float64 is not None:
            return self.max_abs_difference_float64 <= self.rounding_limit
        return self.error_floors is not None and self.error_floors <= MAX_FLOORS

    @property
    def rounding_limit(self) -> float:
        """The largest float64 difference, in logits, that rounding alone may leave."""
        return ROUNDING * self.max_abs_logit


def build_legacy(call: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """The legacy module that `call` builds (`<module>:<callable>`, or `<module>:<callable>('b0', num_classes=2)`), loaded.

    The module is imported from the user's own environment, the working directory included. Raises `UsageError` where it
    cannot be imported or called and `InputRefused` where `weights` do not fit it.
    """
    function, arguments, keywords = _parsed(call)
    try:
        net = function(*arguments, **keywords)
    except Exception as error:
        raise UsageError(f"legacy={call} fails: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"legacy={call} returns {type(net).__name__}, not a torch module.")
    try:
        outcome = net.load_state_dict(
            {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}, strict=False
        )
    except RuntimeError as error:
        raise InputRefused(f"The checkpoint does not fit the legacy module {call}: {error}") from error
    missing = [name for name in outcome.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or outcome.unexpected_keys:
        raise InputRefused(
            f"The checkpoint does not fit the legacy module {call}: missing {missing[:5]}, "
            f"unexpected {outcome.unexpected_keys[:5]}."
        )
    return net.eval()


def compare(legacy: nn.Module | Twin, net: nn.Module, preprocessing: Preprocessing) -> Comparison:
    """Run both, in evaluation mode, on random pixels and on photographs; modules take normalised images (N, C, H, W).

    Raises `InputRefused` where one does not answer with logits (N, K), or the two with different K.
    """
    twin = legacy if isinstance(legacy, Twin) else Twin(Deployed(legacy, preprocessing))
    new: nn.Module = Deployed(net, preprocessing)
    if twin.probabilities:
        new = nn.Sequential(new, nn.LogSoftmax(1))
    pixels_NCHW = torch.cat([_random_pixels(preprocessing), photographs(preprocessing)])
    old_NK, new_NK = _logits(twin.deployed, pixels_NCHW), _logits(new, pixels_NCHW)
    if old_NK.shape != new_NK.shape:
        raise InputRefused(f"The legacy model returns {tuple(old_NK.shape)}, the model {tuple(new_NK.shape)}.")
    bit_exact = torch.equal(old_NK, new_NK)
    double = floors = None
    if not bit_exact:
        old64_NK = _double_logits(twin, pixels_NCHW)
        if old64_NK is None:
            floors = _error_in_floors(old_NK, new, pixels_NCHW)
        else:
            double = float((old64_NK - _logits(copy.deepcopy(new).double(), pixels_NCHW.double())).abs().max())
    return Comparison(
        num_images=len(pixels_NCHW),
        bit_exact=bit_exact,
        max_abs_difference=float((old_NK - new_NK).abs().max()),
        max_abs_difference_float64=double,
        max_abs_logit=float(old_NK.abs().max()),
        top1_agreement=float((old_NK.argmax(1) == new_NK.argmax(1)).float().mean()),
        error_floors=floors,
    )


def photographs(preprocessing: Preprocessing) -> Tensor:
    """Photographs as pixels 0..255 (6, C, H, W) at the model's size: the two of scikit-learn, whole and in quarters."""
    rendered = []
    for image_HWC in load_sample_images().images:
        height_px, width_px = image_HWC.shape[0] // 2, image_HWC.shape[1] // 2
        for part_HWC in (image_HWC, image_HWC[:height_px, :width_px], image_HWC[height_px:, width_px:]):
            rendered.append(render(np.ascontiguousarray(part_HWC), preprocessing))
    return torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2).contiguous().float()


def _random_pixels(preprocessing: Preprocessing) -> Tensor:
    shape = (NUM_RANDOM, preprocessing.num_channels, *preprocessing.size_px)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()


def _error_in_floors(old_NK: Tensor, new: nn.Module, pixels_NCHW: Tensor) -> float:
    """The largest error of the old logits in multiples of what float32 costs the new module; infinite for no number."""
    if not bool(torch.isfinite(old_NK).all()):
        return float("inf")
    noise = measure_noise(new, pixels_NCHW.numpy(), num_runs=NUM_RUNS)
    return float(noise.ratio_N(old_NK.double().numpy()).max())


def _double_logits(twin: Twin, pixels_NCHW: Tensor) -> Tensor | None:
    """The twin's logits in float64; None where it runs in float32 alone."""
    if not twin.float64:
        return None
    double = copy.deepcopy(twin.deployed).double()
    try:
        return _logits(double, pixels_NCHW.double())
    except InputRefused:  # a program whose constants are float32
        return None


def _logits(net: nn.Module, images_NCHW: Tensor) -> Tensor:
    with torch.no_grad():
        output = net.eval()(images_NCHW)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise InputRefused(f"{type(net).__name__} does not return one tensor of logits (N, K): wrap it so that it does.")
    return output


def _parsed(call: str) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    found = re.fullmatch(r"([\w.]+):([\w.]+)(\(.*\))?", call.strip(), re.DOTALL)
    if found is None:
        raise UsageError(
            f"legacy={call} is not <module>:<callable>, e.g. legacy=old_code.model:build, nor a TorchScript or .onnx file."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Any = importlib.import_module(found.group(1))
        for part in found.group(2).split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"legacy={call}: {error}. Install the package, or run where the module lies.") from error
    try:
        node = ast.parse(f"f{found.group(3) or '()'}", mode="eval").body
        assert isinstance(node, ast.Call)
        arguments = [ast.literal_eval(argument) for argument in node.args]
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"legacy={call}: its arguments must be plain values in Python's spelling ({error}).") from error
    return function, arguments, keywords
