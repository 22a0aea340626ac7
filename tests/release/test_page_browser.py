"""The page in a real browser: no console message, no wider than a phone, and alive. Skipped where no Chromium is installed."""

import base64
import hashlib
import html
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.release.conftest import Family
from toolkit.bundle import Report
from toolkit.release.documents import write_page

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


def browse(page: Path, *options: str) -> tuple[str, str]:
    """What Chromium prints and what it logs while it shows `page`."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_page_renders_without_console_messages_and_fits_a_phone(family: Family, tmp_path: Path) -> None:
    path = write_page(family.store, family.candidate, baseline=None, images=family.images, alias="production", output=tmp_path)
    picture = tmp_path / "phone.png"
    _, log = browse(path, "--window-size=500,9000", f"--screenshot={picture}")
    assert [line for line in log.splitlines() if ":CONSOLE:" in line] == []
    pixels = np.asarray(Image.open(picture).convert("L"))
    inked = (pixels < 250).any(axis=0)
    assert inked[20:-20].any()
    assert not inked[-8:].any(), "something reaches the right edge: the page is wider than the screen"


ACTIONS = """
const told = {};
const find = (selector) => document.querySelector(selector);
const mark = find('#confusion-new-axes_1 [data-answer=cracked][data-truth=sound]');
mark.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: 40, clientY: 300}));
told.tip = find('.tip').hidden ? '' : find('.tip').textContent;
document.body.dispatchEvent(new PointerEvent('pointermove', {bubbles: true}));
told.tipLeaves = find('.tip').hidden;
const slider = find('input[name=candidate]');
const before = find('[data-at=candidate]').getBoundingClientRect();
slider.value = 20;
slider.dispatchEvent(new Event('input'));
const after = find('[data-at=candidate]').getBoundingClientRect();
told.recall = ['baseline', 'candidate'].map((side) => find(`[data-show=${side}Recall]`).textContent);
told.moved = [after.x - before.x, after.y - before.y].map(Math.sign);
const flips = () => [...document.querySelectorAll('tr[data-flip]')];
const shown = () => flips().filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
told.all = shown();
mark.dispatchEvent(new MouseEvent('click', {bubbles: true}));
told.filtered = shown();
told.said = find('.filter output').textContent;
find('.filter button').click();
const sure = [...document.querySelectorAll('.sortable th')].at(-1);
told.unsorted = shown();
sure.click();
told.up = shown();
sure.click();
told.down = shown();
document.title = JSON.stringify(told);
"""


def with_script(page: str, script: str) -> str:
    """The page with a second script in it that its policy allows as well."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ")
    return page.replace("</body>", f"<script>{script}</script></body>")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_page_answers_to_pointer_slider_click_and_choice(family: Family, tmp_path: Path) -> None:
    def unsure(report: Report) -> Report:
        first, second = report.details["flips"]
        second = {**second, "candidate": {**second["candidate"], "confidence": 0.6}}
        return replace(report, details={**report.details, "flips": [first, second]})

    family.change("gate", unsure)
    path = write_page(family.store, family.candidate, baseline=None, images=family.images, alias="production", output=tmp_path)
    path.write_text(with_script(path.read_text(), ACTIONS))
    dom, log = browse(path, "--dump-dom")
    assert [line for line in log.splitlines() if ":CONSOLE:" in line] == []
    told = json.loads(html.unescape(dom.partition("<title>")[2].partition("</title>")[0]))
    assert told["tip"] == "sound, answered cracked: 10 images, 6.7% of sound"
    assert told["tipLeaves"]
    assert told["recall"] == ["50.0%", "80.0%"]
    assert told["moved"] == [1, -1], "a lower threshold lies further right and higher on the curve"
    assert told["all"] == ["cell0.png", "gone.png"]
    assert told["filtered"] == ["cell0.png"]
    assert told["said"] == "1 of 2 flips"
    assert told["unsorted"] == ["cell0.png", "gone.png"]
    assert told["up"] == ["gone.png", "cell0.png"]
    assert told["down"] == ["cell0.png", "gone.png"]
