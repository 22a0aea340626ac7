"""Running a network on no data: which layers are called, in which order, and with what shapes.

The network runs on torch's `meta` device, where tensors have a shape and no content, so the walk costs milliseconds, needs
no image and leaves weights, statistics and random state alone. Which image size a network takes is tried, not known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

USUAL_SIZES_PX = (224, 64, 32, 28, 8, 256, 299, 384)


@dataclass(frozen=True)
class Call:
    """One call of a leaf layer: its qualified name and the shape of its output."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """The calls of the layers that were watched, in order, and the shape of what the network returned."""

    calls: tuple[Call, ...]
    output: tuple[int, ...]


def probe(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Trace | None:
    """Run `net` in evaluation mode on a meta batch of 2 and record the calls of its layers of the given `kinds`.

    None where no usual input size runs, or where it does not return one tensor: networks with tensors outside their state,
    data-dependent control flow or several inputs.
    """
    state = {name: tensor.to("meta") for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        for shape_NCHW in _input_shapes(net):
            trace = _run(net, state, shape_NCHW, kinds)
            if trace is not None:
                return trace
        return None
    finally:
        for module, training in modes.items():
            module.training = training


def _run(
    net: nn.Module, state: dict[str, Tensor], shape_NCHW: tuple[int, ...], kinds: tuple[type[nn.Module], ...]
) -> Trace | None:
    calls: list[Call] = []
    handles = []
    for name, module in net.named_modules():
        if isinstance(module, kinds):
            handles.append(module.register_forward_hook(_recorder(name, calls)))
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            output = torch.func.functional_call(net, state, (torch.empty(shape_NCHW, device="meta", dtype=dtype),))
    except Exception:  # any refusal of a foreign network means: not with this input
        return None
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(calls), tuple(output.shape)) if isinstance(output, Tensor) else None


def _recorder(name: str, calls: list[Call]) -> Callable[[nn.Module, Any, Any], None]:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append(Call(name, tuple(output.shape)))

    return record


def _input_shapes(net: nn.Module) -> Iterator[tuple[int, ...]]:
    first = next((m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        yield 2, first.in_features
        for channels in (1, 3):
            side_px = round((first.in_features / channels) ** 0.5)
            if channels * side_px**2 == first.in_features:
                yield 2, channels, side_px, side_px
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    for side_px in dict.fromkeys((*_declared_sizes_px(net), *USUAL_SIZES_PX)):
        yield 2, channels, side_px, side_px


def _declared_sizes_px(net: nn.Module) -> Iterator[int]:
    """Sizes that torchvision's and timm's transformers carry as attributes."""
    for owner in (net, getattr(net, "patch_embed", None)):
        for name in ("image_size", "img_size"):
            size = getattr(owner, name, None)
            if isinstance(size, (tuple, list)) and size:
                size = size[0]
            if isinstance(size, int):
                yield size
    published = getattr(net, "pretrained_cfg", None)
    if isinstance(published, dict) and published.get("input_size"):
        yield published["input_size"][-1]
