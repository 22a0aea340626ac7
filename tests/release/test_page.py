"""The page stands alone, puts the verdict first and lets nothing from a bundle become markup."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.release.conftest import Family, with_limit
from tests.release.outline import Outline
from toolkit.bundle import Measurement, Report
from toolkit.errors import UsageError
from toolkit.release.documents import write_page
from toolkit.release.page import render_page
from toolkit.release.page_lineage import lineage_drawings
from toolkit.release.story import story


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
    outline.require_own_script()
    assert not re.search(r"url\((?!#)|@import", page)


def test_charts_share_no_id_and_refer_to_their_own(family: Family) -> None:
    outline = Outline(page_of(family))
    assert len(outline.plots) == 6
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.references <= set(outline.ids)


def test_marks_tell_the_values_that_stand_in_the_tables(family: Family) -> None:
    page = page_of(family)
    assert "<title>sound, answered cracked: 10 images, 6.7% of sound</title>" in page
    assert "<title>confidence 0.93 to 1.00: 300 images, 97.0% sure on average, 90.0% right</title>" in page
    assert "Accuracy, mono: 90.0% to 84.0%: −6.0 pp (−10.0 … −2.0)" in page
    rows = set(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", page))
    told = re.findall(r"<title>([^<]*): ([^<]*)</title>", page.partition("<body>")[2])
    assert len(told) > 10
    assert {f"{what}: {value}" for what, value in rows} >= {f"{what}: {value}" for what, value in told}


def test_thresholds_stand_at_those_in_use_with_their_figures(family: Family) -> None:
    def use(report: Report) -> Report:
        at = {
            "baseline": Measurement("alert_threshold.baseline", 0.3),
            "candidate": Measurement("alert_threshold.candidate", 0.7),
        }
        return replace(report, measurements=(*report.measurements, *at.values()))

    section = page_of(family).partition("<h3>Every threshold</h3>")[2]
    assert re.findall(r'<output name="(\w+)">([\d.]+)', section) == [("baseline", "0.50"), ("candidate", "0.50")]
    family.change("gate", use)
    section = page_of(family).partition("<h3>Every threshold</h3>")[2]
    assert re.findall(r'<output name="(\w+)">([\d.]+)', section) == [("baseline", "0.30"), ("candidate", "0.70")]
    assert re.findall(r'data-show="(\w+)Recall">([\d.]+)%', section) == [("baseline", "70.0"), ("candidate", "30.0")]
    assert re.findall(r'type="range" name="(\w+)".*?value="(\d+)"', section) == [("baseline", "30"), ("candidate", "70")]
    assert section.count("<tr data-threshold=") == 99


def test_a_report_without_thresholds_has_a_page_too(family: Family) -> None:
    family.change(
        "gate", lambda report: replace(report, details={k: v for k, v in report.details.items() if k != "thresholds"})
    )
    page = page_of(family)
    Outline(page)
    assert "<h3>Every threshold</h3>" in page
    assert 'type="range"' not in page


def test_labels_that_look_like_formulas_are_drawn_as_they_are(family: Family) -> None:
    def rename(report: Report) -> Report:
        return replace(report, details={**report.details, "labels": ["$\\bad{", "5$ to 10$"]})

    family.change("gate", rename)
    page = page_of(family)
    assert "$\\bad{" in page
    assert "5$ to 10$" in page


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
        found = {"flips": flips, "data": data, "contract": contract, "labels": [evil, f'" onclick="{evil}']}
        return replace(report, details={**report.details, **found})

    family.change("gate", poison)
    page = page_of(family)
    Outline(page).require_own_script()
    assert "&lt;script&gt;" in page


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
