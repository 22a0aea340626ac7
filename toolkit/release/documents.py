"""Where the documents of a release lie: `report-<digest>.html`, one a bundle, and `MODEL_CARD.md`, one an alias.

Pages are never replaced by another bundle's; the card is, so that the user's part of it goes on from version to version.
"""

import time
from pathlib import Path

from toolkit.bundle import Bundle, Store
from toolkit.bundle.atomic import write_atomic
from toolkit.data import ImageSet
from toolkit.errors import UsageError
from toolkit.release.card import render_card, user_section
from toolkit.release.page import render_page

CARD = "MODEL_CARD.md"


def write_page(
    store: Store, bundle: Bundle, *, baseline: Bundle | None, images: ImageSet | None, alias: str, output: Path
) -> Path:
    """Write the report page of `bundle` into the directory `output`; returns its path.

    The predecessor is `baseline`, or else the bundle that the stored gate compared with. Raises `UsageError` when both are
    given and differ.
    """
    gate = store.reports(bundle.digest).get("gate")
    compared = gate.subjects[1] if gate else None
    if baseline is not None and compared not in (None, baseline.digest):
        raise UsageError(
            f"the gate of {bundle.short} compared it with {str(compared)[:12]}, not with baseline {baseline.short}. "
            f"Run: toolkit gate bundle={bundle.short} baseline={baseline.short}."
        )
    if baseline is None and compared in store.digests():
        baseline = store.open(str(compared))
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    page = render_page(store, bundle, baseline=baseline, images=images, alias=alias, time_utc=now)
    path = output / f"report-{bundle.short}.html"
    write_atomic(path, page.encode())
    return path


def write_card(store: Store, bundle: Bundle, *, alias: str, output: Path) -> Path:
    """Write the model card of `bundle` into the directory `output`, keeping the user's part; returns its path."""
    path = output / CARD
    section = user_section(path)
    write_atomic(path, render_card(store, bundle, name=alias, section=section).encode())
    return path
