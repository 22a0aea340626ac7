"""The page stands alone, puts the verdict first and lets nothing from a bundle become markup."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.release.conftest import Family, with_limit
from toolkit.bundle import Report
from toolkit.errors import UsageError
from toolkit.release.documents import write_page
from toolkit.release.page import render_page
from toolkit.release.page_lineage import lineage_drawings
from toolkit.release.story import story


class Outline(HTMLParser):
    """Every address a page refers to, its pictures' texts, and whether its tags close."""

    VOID = ("meta", "link", "img", "br", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert self.tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[key] or "" for key in ("src", "href", "action") if key in given]
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        if tag not in self.VOID:
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag


def page_of(family: Family, *, with_images: bool = True) -> str:
    return render_page(
        family.store,
        family.candidate,
        baseline=family.baseline,
        images=family.images if with_images else None,
        alias="production",
    )


def test_page_is_well_formed_and_refers_to_nothing_outside_itself(family: Family) -> None:
    page = page_of(family)
    outline = Outline(page)
    assert outline.addresses
    assert all(address.startswith("data:") for address in outline.addresses)
    assert all(outline.alts)
    assert "<script" not in page
    assert not re.search(r"url\(|@import", page)


@pytest.mark.parametrize(
    ("passed", "heading"), [(True, "may replace"), (False, "must not replace"), (None, "Undecided whether")]
)
def test_verdict_comes_first_with_the_broken_limit_on_top(family: Family, passed: bool | None, heading: str) -> None:
    family.change("gate", lambda report: with_limit(report, "negative_flip_rate", value=0.2, passed=passed))
    page = page_of(family)
    assert heading in page[page.index("<h1>") : page.index("</h1>")]
    first = page[page.index("<li>") : page.index("</li>")]
    assert ("Negative flips" in first) == (passed is not True) or passed is True


def test_flipped_images_are_shown_and_a_missing_one_keeps_its_line(family: Family) -> None:
    page = page_of(family)
    assert page.count("data:image/jpeg;base64,") == 1
    assert "cell0.png" in page
    assert "gone.png" in page
    assert "data:image/jpeg" not in page_of(family, with_images=False)


def test_markup_in_names_from_outside_stays_text(family: Family) -> None:
    evil = "<script>alert(1)</script>"

    def poison(report: Report) -> Report:
        flips = [{**flip, "key": evil, "slice": evil} for flip in report.details["flips"]]
        data = {**report.details["data"], "name": evil, "licence": evil}
        contract = [{"item": evil, "baseline": [evil], "candidate": evil, "severity": "breaking"}]
        return replace(report, details={**report.details, "flips": flips, "data": data, "contract": contract})

    family.change("gate", poison)
    page = page_of(family)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    Outline(page)


def test_lineage_is_drawn_with_the_compared_models_side_by_side(family: Family) -> None:
    page = page_of(family)
    drawings = re.findall(r'<svg class="lineage (\w+)".*?</svg>', page, re.DOTALL)
    assert drawings == ["wide", "narrow"]
    steps = {"old": story(family.store, family.baseline), "new": story(family.store, family.candidate)}
    found = lineage_drawings(family.store, list(steps.items()))
    for shape, side in (("wide", "x"), ("narrow", "y")):
        drawing = found[shape]
        ends = {lane: [box for box in drawing.boxes if box.lane == lane][-1] for lane in steps}
        assert getattr(ends["old"], side) == getattr(ends["new"], side)
        assert len(drawing.arrows) == sum(len(own) - 1 for own in steps.values())
        assert len({(box.x, box.y) for box in drawing.boxes}) == len(drawing.boxes)
    assert found["narrow"].width <= 360
    assert any("85.0%" in line for box in found["wide"].boxes for line in box.lines)


def test_what_to_watch_comes_from_the_evidence(family: Family) -> None:
    def narrow(report: Report) -> Report:
        found = [replace(m, interval=(0.01, 0.049)) if m.name == "negative_flip_rate" else m for m in report.measurements]
        return replace(report, measurements=tuple(found))

    family.change("gate", narrow)
    page = page_of(family)
    section = page[page.index("What to watch") : page.index("Reproducibility")]
    assert "Holds narrowly: Negative flips" in section
    assert "4.9%" in section
    assert "cracked (" in section or "sound (" in section


def test_page_without_gate_or_predecessor_still_renders(family: Family) -> None:
    page = render_page(family.store, family.baseline, baseline=None, images=None, alias="first")
    Outline(page)
    assert "not compared with a predecessor" in page


def test_same_reports_give_the_same_page(family: Family) -> None:
    assert page_of(family) == page_of(family)


def test_page_takes_the_predecessor_from_the_gate_and_refuses_another(family: Family, tmp_path: Path) -> None:
    path = write_page(family.store, family.candidate, baseline=None, images=None, alias="production", output=tmp_path)
    assert family.baseline.short in path.read_text()
    stranger = family.store.ancestors(family.baseline)[0]
    with pytest.raises(UsageError, match="gate of"):
        write_page(family.store, family.candidate, baseline=stranger, images=None, alias="production", output=tmp_path)
