"""Matching layers by order and shape, where names say nothing.

Two implementations of one architecture define the same layers in nearly the same order. Both rows of layers are cut at
every point up to which they hold the same shapes; between two cuts a layer is matched if its shapes occur once there.
Layers matched by name are fixed points of both rows. Ambiguous, and so reported and never guessed, are equal shapes in a run
that stands in another order; their equals elsewhere in the same block, where agreement may be chance (RegNet's shortcut and
first convolution have one shape, and two libraries define them in another order); once any run stands in another order, equal
shapes side by side in one module anywhere, unless their names number them; and pairs whose names contradict their order
(`left`, `right` against `right`, `left`).

What no file can show is two layers of one shape that changed places and nothing else: there the rows agree. Tensors for which
order alone speaks are therefore counted, and only running both models (`legacy`) proves them.
"""

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from toolkit.migration.layering import Layer, Signature, layers_of, with_norms

How = Literal["order", "shape", "reshaped"]


@dataclass(frozen=True)
class Pair:
    """A tensor of the model with its source, by `order` (it stood in the same place) or `shape` (alone of its shapes)."""

    target: str
    source: str
    how: How


@dataclass(frozen=True)
class Ambiguous:
    """Tensors that the evidence cannot tell apart, and why."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Ordering:
    """What order and shape settle, and what they leave open."""

    pairs: Sequence[Pair] = ()
    missing: Sequence[str] = ()
    extra: Sequence[str] = ()
    ambiguous: Sequence[Ambiguous] = ()


Match = tuple[Layer, Layer, How]
Run = tuple[list[Layer], list[Layer]]


@dataclass(frozen=True)
class Found:
    """Matched layers (checkpoint's, model's) and what is ambiguous."""

    pairs: Sequence[Match]
    ambiguous: Sequence[Ambiguous]


def align(source: Mapping[str, Tensor], target: Mapping[str, Tensor], named: Mapping[str, str]) -> Ordering:
    """Match the tensors that `named` (target to source) leaves over, layer by layer."""
    sources = layers_of(source, {origin: name for name, origin in named.items()})
    targets = layers_of(target, {name: name for name in named})
    joined = with_norms(sources), with_norms(targets)
    if _same_shapes(*joined):
        found = _agreement(*joined)
    elif _same_shapes(sources, targets):
        found = _agreement(sources, targets)
    else:
        found = _difference(sources, targets)
    pairs = [
        Pair(b.tensors[kind], a.tensors[kind], how) for a, b, how in found.pairs for kind in b.tensors if kind in a.tensors
    ]
    settled = {*named, *named.values(), *(p.target for p in pairs), *(p.source for p in pairs)}
    settled |= {name for group in found.ambiguous for name in (*group.sources, *group.targets)}
    return Ordering(
        pairs=[pair for pair in pairs if pair.target not in named],
        missing=[name for name in target if name not in settled],
        extra=[name for name in source if name not in settled],
        ambiguous=found.ambiguous,
    )


def _same_shapes(sources: list[Layer], targets: list[Layer]) -> bool:
    return Counter(layer.signature for layer in sources) == Counter(layer.signature for layer in targets)


def _agreement(sources: list[Layer], targets: list[Layer]) -> Found:
    """Both rows hold the same shapes equally often: match them run by run."""
    matched: list[Match] = []
    ambiguous: list[Ambiguous] = []
    runs = list(_runs(sources, targets))
    doubtful = _in_doubt(runs)
    for run_sources, run_targets in runs:
        how: How = "order" if len(run_sources) == 1 else "shape"
        for layer in run_targets:
            if layer.name not in doubtful:
                matched.append((next(a for a in run_sources if a.signature == layer.signature), layer, how))
    for group in dict.fromkeys(doubtful.values()):
        members = [layer for layer in targets if doubtful.get(layer.name) == group]
        partners = [a for run in runs for a, b in zip(*_sorted(run), strict=True) if b in members]
        ambiguous.append(_ambiguous(partners, members, "equal shapes stand in another order"))
    return _without_contradictions(matched, ambiguous)


def _in_doubt(runs: list[Run]) -> dict[str, int]:
    """The model's layers whose partner is in doubt, by name, with the number of the run that brings the doubt.

    A run in another order puts in doubt its repeated shapes, and those of its shapes that occur again in its block: the
    smallest module that holds the run.
    """
    doubtful: dict[str, int] = {}
    for number, run in enumerate(runs):
        if len(run[0]) == 1:
            continue
        scopes = _scope(run[0]), _scope(run[1])
        block = [
            b
            for pair in runs
            for a, b in zip(*_sorted(pair), strict=True)
            if a.name.startswith(scopes[0]) or b.name.startswith(scopes[1])
        ]
        times = Counter(layer.signature for layer in block)
        shapes = {layer.signature for layer in run[1]}
        for layer in block:
            if layer.signature in shapes and times[layer.signature] > 1:
                doubtful.setdefault(layer.name, number)
    if any(len(run[0]) > 1 for run in runs):
        for number, group in enumerate(_siblings(runs), start=len(runs)):
            doubtful |= {b.name: doubtful.get(b.name, number) for _, b in group}
    return doubtful


def _siblings(runs: list[Run]) -> Iterator[list[tuple[Layer, Layer]]]:
    """Layers of one shape in one module, on either side, whose names do not number them: where the order of the file has
    proved to mean nothing elsewhere, nothing is left that tells them apart."""
    pairs = [pair for run in runs for pair in zip(*_sorted(run), strict=True)]
    for side in (0, 1):
        groups: dict[tuple[str, Signature], list[tuple[Layer, Layer]]] = {}
        for pair in pairs:
            groups.setdefault((pair[side].name.rpartition(".")[0], pair[side].signature), []).append(pair)
        for group in groups.values():
            numbered = all(len({_template(pair[s].name) for pair in group}) == 1 for s in (0, 1))
            if len(group) > 1 and not numbered:
                yield group


def _sorted(run: Run) -> Run:
    """Both sides of a run by shape, so that equal shapes stand side by side."""
    return sorted(run[0], key=_by_signature), sorted(run[1], key=_by_signature)


def _by_signature(layer: Layer) -> Signature:
    return layer.signature


def _scope(layers: list[Layer]) -> str:
    """The smallest module that holds all the layers, as the beginning of their names."""
    columns = zip(*(layer.name.split(".") for layer in layers), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return "".join(f"{column[0]}." for column in shared)


def _runs(sources: list[Layer], targets: list[Layer]) -> Iterator[Run]:
    """The shortest runs that hold the same shapes in both rows."""
    balance: Counter[Signature] = Counter()
    start = 0
    for index, (a, b) in enumerate(zip(sources, targets, strict=True)):
        balance[a.signature] += 1
        balance[b.signature] -= 1
        if not any(balance.values()):
            yield sources[start : index + 1], targets[start : index + 1]
            start = index + 1
            balance.clear()


def _without_contradictions(matched: list[Match], ambiguous: list[Ambiguous]) -> Found:
    """Take back the pairs of equal shapes whose names speak for the other assignment."""
    groups: dict[Signature, list[Match]] = {}
    for pair in matched:
        groups.setdefault(pair[1].signature, []).append(pair)
    doubtful: set[str] = set()
    for group in groups.values():
        for (a, A, _), (b, B, _) in itertools.combinations(group, 2):
            if _contradict(a.name, b.name, A.name, B.name):
                doubtful |= {A.name, B.name}
                ambiguous = [*ambiguous, _ambiguous([a, b], [A, B], "their names contradict their order")]
    return Found([pair for pair in matched if pair[1].name not in doubtful], ambiguous)


def _contradict(a: str, b: str, A: str, B: str) -> bool:
    """Whether names say a goes to B and b to A: a word or number tells them apart, the other way round."""
    words_a, words_b, words_A, words_B = (set(re.findall(r"[a-z]+", name.lower())) for name in (a, b, A, B))
    if (words_a - words_b) & (words_B - words_A) or (words_b - words_a) & (words_A - words_B):
        return True
    if _template(a) != _template(b) or _template(A) != _template(B):
        return False
    return (_numbers(a) < _numbers(b)) != (_numbers(A) < _numbers(B))


def _template(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _difference(sources: list[Layer], targets: list[Layer]) -> Found:
    """The rows differ: the likeliest reading of how, for people. Nothing found here is ever loaded."""
    matcher = difflib.SequenceMatcher(
        None, [layer.signature for layer in sources], [layer.signature for layer in targets], autojunk=False
    )
    matched: list[Match] = []
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind == "equal":
            matched.extend((a, b, "order") for a, b in zip(sources[i:i_end], targets[j:j_end], strict=True))
        elif kind == "replace" and i_end - i == j_end - j:
            for a, b in zip(sources[i:i_end], targets[j:j_end], strict=True):
                if a.tensors.keys() == b.tensors.keys():
                    matched.append((a, b, "reshaped"))
    return Found(matched, [])


def _ambiguous(sources: list[Layer], targets: list[Layer], reason: str) -> Ambiguous:
    names = [tuple(name for layer in layers for name in layer.tensors.values()) for layers in (sources, targets)]
    return Ambiguous(names[0], names[1], reason)
