"""Stage `log`."""

from toolkit.bundle import Store
from toolkit.release.tables import open_console, show_log


def log(reference: str, *, store: Store) -> None:
    """Show where a bundle comes from, newest first, and the moves of its alias."""
    show_log(reference, store, open_console())
