"""Where this machine keeps what it need not fetch or measure again, and how large a cache may grow."""

import os
import shutil
from pathlib import Path

from toolkit.errors import UsageError

GIB_VARIABLE = "TOOLKIT_CACHE_GIB"
DEFAULT_GIB = 32.0
SHARE_OF_DISK = 0.5  # of what is free or already the cache's


def cache_directory() -> Path:
    """$TOOLKIT_CACHE, or model-upgrade-toolkit in the user's cache directory."""
    place = os.environ.get("TOOLKIT_CACHE")
    if place:
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "model-upgrade-toolkit"


def allowed_bytes(directory: Path, own_bytes: int) -> int:
    """How large a cache in `directory` may grow that holds `own_bytes` now.

    TOOLKIT_CACHE_GIB (default 32) and at most half of the disk's free space. Raises `UsageError` for a size that is no number.
    """
    text = os.environ.get(GIB_VARIABLE, str(DEFAULT_GIB))
    try:
        wanted = float(text) * 2**30
    except ValueError as error:
        raise UsageError(f"{GIB_VARIABLE} is '{text}'; give the cache's size in GiB as a number (0: no cache).") from error
    place = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    return int(min(wanted, SHARE_OF_DISK * (shutil.disk_usage(place).free + own_bytes)))
