"""The lineage as a diagram: how the model in service and its successor came to be, step by step, with key figures.

Two drawings of the same boxes, as SVG in the page: rows for a screen, columns for a phone. The template draws them, so that
every text passes through its escaping.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.bundle import Bundle, Store
from toolkit.release.story import Step, architecture
from toolkit.release.tables import key_figures

WIDTH, HEIGHT = 158, 66
GAP, APART = 24, 34
MAX_LETTERS = 26


@dataclass(frozen=True)
class Box:
    """One step: its place in the drawing (px), three lines of text, and its lane, `old` or `new`."""

    x: int
    y: int
    lane: str
    lines: tuple[str, str, str]


@dataclass(frozen=True)
class Drawing:
    """Boxes, arrows from step to step and the dashed line of comparison, as ends (x1, y1, x2, y2) in px."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[tuple[int, int, int, int], ...]
    compared: tuple[int, int, int, int] | None


def lineage_drawings(store: Store, lanes: Sequence[tuple[str, Sequence[Step]]]) -> dict[str, Drawing]:
    """The diagram in rows (`wide`) and in columns (`narrow`) of `lanes`, each `old` or `new` with its steps, oldest first."""
    filled = [(lane, [_lines(store, step.bundle, step.what) for step in steps]) for lane, steps in lanes if steps]
    return {"wide": _drawn(filled, across=True), "narrow": _drawn(filled, across=False)} if filled else {}


def _drawn(lanes: Sequence[tuple[str, Sequence[tuple[str, str, str]]]], *, across: bool) -> Drawing:
    """Lanes end at the same edge, so that the two models that were compared stand side by side."""
    longest = max(len(steps) for _, steps in lanes)
    boxes, arrows, ends = [], [], []
    for index, (lane, steps) in enumerate(lanes):
        places = [_place(index, longest - len(steps) + number, across) for number in range(len(steps))]
        boxes += [Box(x, y, lane, lines) for (x, y), lines in zip(places, steps, strict=True)]
        for (x, y), (next_x, next_y) in itertools.pairwise(places):
            middle = (x + WIDTH, y + HEIGHT // 2, next_x, y + HEIGHT // 2)
            arrows.append(middle if across else (x + WIDTH // 2, y + HEIGHT, x + WIDTH // 2, next_y))
        ends.append(places[-1])
    compared = None
    if len(ends) == 2:
        (x, y), (other_x, other_y) = ends
        down = (x + WIDTH // 2, y + HEIGHT, x + WIDTH // 2, other_y)
        compared = down if across else (x + WIDTH, y + HEIGHT // 2, other_x, y + HEIGHT // 2)
    return Drawing(
        max(box.x for box in boxes) + WIDTH + 1, max(box.y for box in boxes) + HEIGHT + 1, tuple(boxes), tuple(arrows), compared
    )


def _place(lane: int, step: int, across: bool) -> tuple[int, int]:
    """The upper left corner of a step's box."""
    if across:
        return 1 + step * (WIDTH + GAP), 1 + lane * (HEIGHT + APART)
    return 1 + lane * (WIDTH + GAP), 1 + step * (HEIGHT + GAP)


def _lines(store: Store, bundle: Bundle, what: str) -> tuple[str, str, str]:
    figures = key_figures(store, bundle) or _training_figure(store, bundle)
    return _short(what), _short(architecture(bundle.manifest)), _short(figures[0] if figures else bundle.short)


def _training_figure(store: Store, bundle: Bundle) -> list[str]:
    """The parameters left by pruning, where that was measured."""
    pruning = store.reports(bundle.digest).get("pruning")
    values = {m.name: m.value for m in pruning.measurements} if pruning else {}
    ratio = values.get("macs.ratio")
    return [f"{ratio:.2f}× the MACs"] if ratio is not None else []


def _short(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}…"
