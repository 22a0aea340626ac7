"""The page in a real browser: no console message, and no wider than a phone. Skipped where no Chromium is installed."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.release.conftest import Family
from toolkit.release.documents import write_page

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


def browse(page: Path, *options: str) -> str:
    """What Chromium logs while it shows `page`."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_page_renders_without_console_messages_and_fits_a_phone(family: Family, tmp_path: Path) -> None:
    path = write_page(family.store, family.candidate, baseline=None, images=family.images, alias="production", output=tmp_path)
    picture = tmp_path / "phone.png"
    log = browse(path, "--window-size=500,9000", f"--screenshot={picture}")
    assert [line for line in log.splitlines() if ":CONSOLE:" in line] == []
    pixels = np.asarray(Image.open(picture).convert("L"))
    inked = (pixels < 250).any(axis=0)
    assert inked[20:-20].any()
    assert not inked[-8:].any(), "something reaches the right edge: the page is wider than the screen"
