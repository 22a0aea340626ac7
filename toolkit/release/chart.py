"""How every chart of the pages looks, and how it gets into a page: as inline SVG whose marks tell their values.

Old is grey and new is blue everywhere. Colours are from Okabe and Ito's set, which colour-blind readers can tell apart, and
none carries a meaning alone. Figures are made without pyplot, so nothing global is touched.
"""

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

OLD, NEW = "#6b7280", "#0072b2"
BETTER, WORSE, SAME = "#00795c", "#c8500a", "#6b7280"
INK, GRID = "#1f2933", "#e3e7ec"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a label such as "$5 to $10" is text
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "svg.hashsalt": "model-upgrade-toolkit",
    "svg.fonttype": "none",
}

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
ElementTree.register_namespace("", SVG[1:-1])
ElementTree.register_namespace("xlink", XLINK[1:-1])


P = ParamSpec("P")
T = TypeVar("T")


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run `draw` in the style of the pages."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


class Marks(dict[str, dict[str, str]]):
    """What the marks of one figure say, shown to who points at them and as a table; other names become `data-` attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, str] = {}

    def add(self, artist: Artist, what: str = "", value: str = "", **data: str) -> None:
        """Let `artist` say `value` of `what`, and carry `data`."""
        name = f"mark{len(self)}"
        artist.set_gid(name)
        self[name] = {**({"tip": f"{what}: {value}"} if what else {}), **data}
        if what:
            self.table[what] = value

    def point(self, axes: Axes, x: float, y: float, what: str, value: str) -> None:
        """Put an unseen mark, large enough for a finger, on (x, y) of `axes`."""
        (dot,) = axes.plot([x], [y], marker="o", markersize=13, color="none", linestyle="")
        self.add(dot, what, value)


def blank_figure(width: float, height: float, *, rows: int = 1, heights: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure in the page's style, of `width` by `height` inches, with `rows` axes below each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, 1, squeeze=False, height_ratios=list(heights))
    axes = [row[0] for row in grid]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=GRID, linewidth=0.7)
        each.set_axisbelow(True)
    return figure, axes


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file."""
    stream = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def inline_svg(figure: Figure, *, name: str, alt: str, marks: Marks | None = None) -> Markup:
    """The figure as an SVG element for a page on which no other chart has this `name`; `alt` tells what it shows.

    A mark's tip stands in it as a `<title>`, which browsers show by themselves; the page's script shows it sooner. Below the
    figure follows the table of what its marks say, folded.
    """
    marks = marks or Marks()
    root = ElementTree.fromstring(svg_bytes(figure))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style") or (not len(child) and child.tag == f"{SVG}defs"):
                parent.remove(child)
    for element in root.iter():
        _describe(element, marks.get(element.get("id", "")))
        _prefix(element, name)
    box = root.get("viewBox", "0 0 1 1").split()
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": alt, "style": f"max-width:{float(box[2]) * 4 / 3:.0f}px"}
    return Markup(ElementTree.tostring(root, encoding="unicode")) + _numbers(marks.table)


def _numbers(table: dict[str, str]) -> Markup:
    row = Markup("<tr><td>{}</td><td>{}</td></tr>")
    rows = Markup("").join(row.format(what, value) for what, value in table.items())
    folded = Markup('<details class="numbers"><summary>The numbers</summary><table><tbody>{}</tbody></table></details>')
    return folded.format(rows) if table else Markup("")


def _describe(element: ElementTree.Element, said: dict[str, str] | None) -> None:
    if said is None:
        return
    element.attrib |= {f"data-{key}": value for key, value in said.items() if key != "tip"}
    if "tip" in said:
        title = ElementTree.Element(f"{SVG}title")
        title.text = said["tip"]
        element.insert(0, title)


def _prefix(element: ElementTree.Element, name: str) -> None:
    """Make the ids of this chart its own: those of two charts on one page would be taken for each other."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{XLINK}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
