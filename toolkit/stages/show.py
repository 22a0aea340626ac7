"""Stage `show`."""

from toolkit.bundle import Store
from toolkit.release.tables import open_console, show_bundle, show_report


def show(reference: str, *, store: Store) -> None:
    """Show one bundle and its reports, by alias or digest."""
    bundle, console = store.open(reference), open_console()
    show_bundle(bundle, store, console)
    for report in store.reports(bundle.digest).values():
        show_report(report, console)
