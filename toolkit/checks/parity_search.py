"""Which module outputs to compare when there is not memory for all of them at once.

A value that lies in its noise clears everything it was computed from; one that does not leaves the fault among them. So a few
values, as many as fit, are compared in each round, and the candidates shrink until the earliest wrong value has only clean
ones before it. Branches are followed by the graph's own edges, not by the order of its nodes: a value that comes later in a
branch beside the fault says nothing of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import onnx


class Compared(Protocol):
    """A module's value with its error in floors."""

    @property
    def module(self) -> str: ...

    @property
    def ratio(self) -> float: ...


Found = TypeVar("Found", bound=Compared)


def search(
    modules: Sequence[str],
    upstream: Mapping[str, frozenset[str]],
    num_bytes: Mapping[str, int],
    compare: Callable[[Sequence[str]], Iterable[Found]],
    *,
    max_bytes: int,
    k: float,
) -> list[Found]:
    """Compare `modules` (in the graph's order) until the first whose error exceeds `k` floors is known, if there is one.

    `upstream` names for each module those its value is computed from, `num_bytes` what comparing it takes; a round takes at
    most `max_bytes`, or one module. Returns what was compared, in the graph's order.
    """
    found: dict[str, Found] = {}
    candidates = list(modules)
    while candidates:
        chosen = _affordable(candidates, num_bytes, max_bytes)
        found |= {place.module: place for place in compare(chosen)}
        wrong = [module for module in modules if module in found and not found[module].ratio <= k]
        cleared = set(chosen).union(found, *(upstream[module] for module in found if module not in wrong))
        within = upstream[wrong[0]] if wrong else set(modules)
        candidates = [module for module in candidates if module in within and module not in cleared]
    return [found[module] for module in modules if module in found]


def upstream_modules(graph: onnx.GraphProto, values: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """For each module the modules its value is computed from; `values` maps a module to the name of its value."""
    owners = {value: module for module, value in values.items()}
    behind: dict[str, frozenset[str]] = {}
    found: dict[str, frozenset[str]] = {}
    for node in graph.node:
        sources = frozenset[str]().union(*(behind.get(name, frozenset()) for name in node.input))
        for output in node.output:
            if output in owners:
                found[owners[output]] = sources
                behind[output] = sources | {owners[output]}
            else:
                behind[output] = sources
    return found


def _affordable(candidates: Sequence[str], num_bytes: Mapping[str, int], max_bytes: int) -> list[str]:
    """As many of the candidates as fit, evenly spaced."""
    number = len(candidates)
    while True:
        spaced = {round(float(index)) for index in np.linspace(-1, len(candidates), number + 2)[1:-1]}
        chosen = [candidates[index] for index in sorted(spaced)]
        if number == 1 or sum(num_bytes[module] for module in chosen) <= max_bytes:
            return chosen
        number = max(1, number * 3 // 4)
