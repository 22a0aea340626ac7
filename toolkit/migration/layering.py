"""The tensors of a file as a row of layers, each with a signature that two implementations share: kinds and shapes.

Kinds make spellings meet (a TensorFlow `gamma` is a norm's weight), trailing ones in shapes are dropped (a linear layer holds
what a 1x1 convolution holds), and a BatchNorm may be joined to the layer before it, because it belongs to that layer wherever
the two are defined.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

COUNTER = "num_batches_tracked"
LEAVES = {
    "weight": "weight",
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "running_mean": "running_mean",
    "moving_mean": "running_mean",
    "running_var": "running_var",
    "moving_variance": "running_var",
    COUNTER: COUNTER,
}
PAIRED = {"gamma": "beta", "beta": "gamma"}  # of a norm; a lone gamma is a layer's scale
JOINED = re.compile(r"(.*_proj)_(weight|bias)")  # attention's in_proj_weight is the weight of a layer in_proj

Signature = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Layer:
    """The tensors of one module in one file: kind of tensor to full name; its signature is their kinds and shapes."""

    name: str
    tensors: Mapping[str, str]
    signature: Signature


def layers_of(tensors: Mapping[str, Tensor], fixed: Mapping[str, str]) -> list[Layer]:
    """The layers in a file's order; those in `fixed` get a signature of their own, the same in both files."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for name in tensors:
        module, leaf = _module_and_leaf(name)
        kind = LEAVES.get(leaf, "*")
        if leaf in PAIRED and f"{module}.{PAIRED[leaf]}" not in tensors:
            kind = "*"
        anchor = "#" if name in fixed else ""
        groups.setdefault((module if kind != "*" else name, anchor), {})[kind] = name
    layers = []
    for (module, anchor), members in groups.items():
        shapes = sorted((kind, compact(tensors[name].shape)) for kind, name in members.items() if kind != COUNTER)
        signature = tuple((f"#{fixed[members[kind]]}", ()) for kind, _ in shapes) if anchor else tuple(shapes)
        if signature:
            layers.append(Layer(module, members, signature))
    return layers


def compact(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without trailing ones: a linear layer (K, D) holds what a 1x1 convolution (K, D, 1, 1) holds."""
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def with_norms(layers: list[Layer]) -> list[Layer]:
    """The row with each layer and the BatchNorm of its width that follows it as one: they belong together in any order."""
    joined: list[Layer] = []
    for layer in layers:
        before = joined[-1] if joined else None
        weight = dict(before.signature).get("weight", ()) if before else ()
        norm = dict(layer.signature)
        if before and len(weight) > 1 and norm.get("running_mean") == weight[:1]:
            tensors = {**before.tensors, **{f"norm.{kind}": name for kind, name in layer.tensors.items()}}
            signature = (*before.signature, *((f"norm.{kind}", shape) for kind, shape in layer.signature))
            joined[-1] = Layer(before.name, tensors, signature)
        else:
            joined.append(layer)
    return joined


def _module_and_leaf(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    joined = JOINED.fullmatch(leaf)
    return (f"{module}.{joined.group(1)}", joined.group(2)) if joined else (module, leaf)
