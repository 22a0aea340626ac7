"""The layers a net runs, with their real sizes: what one has to know to time them one by one in another runtime.

N images, C channels, H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.pruning.cost import evaluating
from toolkit.pruning.rules import prunes_whole_groups


@dataclass(frozen=True)
class LayerOp:
    """A convolution or linear layer apart from its weights.

    `size` is the input's height and width of a convolution, and of a linear layer the number of rows of one image. The
    other tuples are a convolution's, height before width; they are empty for a linear layer.
    """

    kind: Literal["conv", "linear"]
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def out_elements(self) -> int:
        """The number of values it makes of one image."""
        area = self.size[0]
        if self.kind == "conv":
            area = 1
            for size, kernel, stride, padding, dilation in zip(
                self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            ):
                area *= (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        return area * self.out_channels

    def with_widths(self, out_width: int, in_width: int) -> "LayerOp":
        """The same layer when its weight has `out_width` by `in_width` channels (of each group, where it is grouped)."""
        groups = self.groups
        if groups > 1 and prunes_whole_groups(groups):
            groups = out_width * groups // self.out_channels
        return replace(self, in_channels=in_width * groups, out_channels=out_width, groups=groups)


@dataclass(frozen=True)
class LayerCall:
    """One call of the layer whose weight is the tensor `tensor`."""

    tensor: str
    op: LayerOp


def layer_calls(net: nn.Module, example_NCHW: Tensor) -> list[LayerCall]:
    """Every call of a convolution or linear layer on `example_NCHW` (one image) in eval mode, in order; `net` is left alone.

    Transposed convolutions, and linear layers that use a part of their weight, are left out.
    """
    with evaluating(net), _Recorder(net) as recorder:
        net(example_NCHW[:1])
    return recorder.calls


class _Recorder(TorchDispatchMode):
    """Notes the calls of layers under it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr(): (name, p.shape) for name, p in net.named_parameters() if p.ndim > 1}
        self.calls: list[LayerCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name == "convolution":
            self._convolution(args)
        elif name in ("addmm", "mm"):
            self._linear(args[-2], args[-1])
        return out

    def _convolution(self, args: Sequence[Any]) -> None:
        images, weight, transposed, groups = args[0], args[1], args[6], args[8]
        found = self.weights.get(weight.untyped_storage().data_ptr())
        if found is None or transposed or weight.ndim != 4:
            return
        stride, padding, dilation = (tuple(int(v) for v in args[i]) for i in (3, 4, 5))
        op = LayerOp(
            kind="conv",
            in_channels=images.shape[1],
            out_channels=weight.shape[0],
            size=tuple(images.shape[2:]),
            kernel=tuple(weight.shape[2:]),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        self.calls.append(LayerCall(found[0], op))

    def _linear(self, rows: Tensor, transposed: Tensor) -> None:
        found = self.weights.get(transposed.untyped_storage().data_ptr())
        if found is None or tuple(found[1]) != (transposed.shape[1], transposed.shape[0]):
            return
        self.calls.append(LayerCall(found[0], LayerOp("linear", rows.shape[1], transposed.shape[1], (rows.shape[0],))))
