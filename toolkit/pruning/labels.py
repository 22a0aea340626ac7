"""The labels of channel coupling: one number for each index of each weight dimension, and which numbers belong together.

A label tensor has the shape of the activation it shadows but is stored with stride 0 along every dimension it is constant
along, so that it stays as small as the channels it tells apart.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from toolkit.pruning.surgery import tensor_owners


class Labels:
    """The numbers of a net's weight indices, the labels of its activations, and in `edges` which numbers belong together.

    `stopped_at` names the operators that had no rule for what went through them.
    """

    def __init__(self, net: nn.Module) -> None:
        self.offsets: dict[tuple[str, int], int] = {}
        self.names: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.consumers: set[tuple[str, int]] = set()
        self.touched: set[str] = set()
        self.edges: list[np.ndarray] = []
        self.stopped_at: set[str] = set()
        self.of_activation: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.transposed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.num_labels = 1
        for name, (tensor, _, _) in tensor_owners(net).items():
            tied = tensor in self.names
            self.names.setdefault(tensor, name)
            for dim, size in enumerate(tensor.shape):
                self.offsets[name, dim] = self.num_labels
                self.num_labels += size
                if tied:  # shared under several names: whichever way it is used, it keeps its shape
                    self.freeze(self.numbers(name, dim, size))
                    self.freeze(self.numbers(self.names[tensor], dim, size))

    def numbers(self, name: str, dim: int, size: int) -> Tensor:
        """The label numbers of dimension `dim` of the tensor `name`."""
        return torch.arange(size) + self.offsets[name, dim]

    def join(self, a: Tensor, b: Tensor) -> None:
        """Note that the labels of `a` and `b`, broadcast together, belong together pairwise."""
        pairs = torch.stack(torch.broadcast_tensors(*compact(a, b)), dim=-1).reshape(-1, 2)
        self.edges.append(torch.unique(pairs[pairs[:, 0] != pairs[:, 1]], dim=0).numpy())

    def freeze(self, labels: Tensor) -> None:
        """Note that none of `labels` may be removed."""
        self.join(labels, torch.zeros((), dtype=torch.int64))

    def of(self, tensor: Tensor) -> Tensor:
        """The labels of `tensor`'s elements, in its shape: 0 where nothing that could be removed made them."""
        if tensor in self.of_activation:
            return self.of_activation[tensor]
        zeros = torch.zeros((), dtype=torch.int64).expand(tensor.shape)
        name = self.names.get(tensor)
        if name is None:
            return zeros
        self.touched.add(name)
        long_dims = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        if len(long_dims) == 1:  # a vector in some disguise: one value a channel
            view = [-1 if dim == long_dims[0] else 1 for dim in range(tensor.ndim)]
            return self.numbers(name, long_dims[0], tensor.shape[long_dims[0]]).view(view)
        for dim, size in enumerate(tensor.shape):
            self.freeze(self.numbers(name, dim, size))
        return zeros

    def freeze_use(self, tensor: Tensor) -> None:
        """Note that an operator without a rule used `tensor`: nothing in it may be removed."""
        self.freeze(self.of(tensor if (weight := self.transposed.get(tensor)) is None else weight))

    def weight(self, tensor: Tensor | None) -> str | None:
        """The name of the parameter or buffer `tensor`, now touched; None when it was computed."""
        name = None if tensor is None else self.names.get(tensor)
        if name is not None:
            self.touched.add(name)
        return name

    def vector(self, labels: Tensor, dim: int) -> Tensor:
        """One label for each index of `dim`; where one index has several along the other dimensions, they are joined."""
        (small,) = compact(labels, keep=dim)
        rows = small.movedim(dim, 0).reshape(small.shape[dim], -1)
        if rows.shape[1] > 1:
            self.join(rows[:, :1], rows)
        return rows[:, 0]


def aligned(labels: Tensor, ndim: int) -> Tensor:
    """`labels` with leading dimensions of size 1 up to `ndim`."""
    return labels.reshape([1] * (ndim - labels.ndim) + list(labels.shape)) if labels.ndim < ndim else labels


def varies(labels: Tensor, dim: int) -> bool:
    """Whether tidy `labels` differ along `dim`."""
    return labels.shape[dim] > 1 and labels.stride(dim) != 0


def compact(*labels: Tensor, keep: int | None = None) -> list[Tensor]:
    """The labels with every dimension they are constant along (stride 0) cut to one index."""
    result = []
    for tensor in labels:
        for dim in range(tensor.ndim):
            if dim != keep and tensor.shape[dim] > 1 and tensor.stride(dim) == 0:
                tensor = tensor.narrow(dim, 0, 1)
        result.append(tensor)
    return result


def tidy(labels: Tensor) -> Tensor:
    """The same labels with stride 0 along every dimension they are constant along: small, and `varies` sees it."""
    shape = labels.shape
    if math.prod(shape) == 0:
        return labels
    (labels,) = compact(labels)
    for dim in range(labels.ndim):
        if labels.shape[dim] > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels.expand(shape)
