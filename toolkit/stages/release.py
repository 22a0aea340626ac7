"""Stage `release`."""

import logging
from collections.abc import Sequence
from pathlib import Path

from toolkit.bundle import Bundle, Store
from toolkit.checks.profile import MIN_IMAGES, make_profile
from toolkit.data import ImageSet
from toolkit.release.documents import write_card, write_page
from toolkit.release.registry import promote, require_passed

logger = logging.getLogger(__name__)


def release(
    bundle: Bundle,
    *,
    store: Store,
    alias: str = "production",
    baseline: Bundle | None = None,
    data: ImageSet | None = None,
    required: Sequence[str] = ("parity", "gate"),
    output: Path = Path("release"),
) -> Bundle:
    """Put a bundle into service: move the alias if the required reports passed, write the model card and the report page.

    The page is written whatever the verdict, because a refusal needs reasons too; the card and the alias only when the
    bundle is released. `data` supplies the pictures of the flipped images, and its test split the bundle's reference profile,
    which drift and monitoring compare with. Raises `CheckFailed` or `Undecided`, naming the
    limits, and leaves the alias where it was.
    """
    output = Path(output)  # a partial function from a config gives a string
    page = write_page(store, bundle, baseline=baseline, images=data, alias=alias, output=output)
    try:
        require_passed(store, bundle, alias=alias, required=required)
    finally:
        logger.info("Report page: %s", page)
    card = write_card(store, bundle, alias=alias, output=output)
    promote(store, bundle, alias=alias, required=required)
    logger.info("Model card: %s", card)
    logger.info("Alias '%s' now stands for %s.", alias, bundle.short)
    if data is not None and len(data.split("test")) >= MIN_IMAGES:
        profile = make_profile(bundle, data, store=store)
        logger.info("Reference profile of %d images; toolkit drift and toolkit monitor compare with it.", len(profile))
    return bundle
