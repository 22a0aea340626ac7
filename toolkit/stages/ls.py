"""Stage `ls`."""

from toolkit.bundle import Store
from toolkit.errors import UsageError
from toolkit.release.tables import bundles_table, open_console


def ls(*, store: Store) -> None:
    """List the bundles of the store with their aliases, makers and verdicts."""
    if not store.root.is_dir():
        raise UsageError(f"There is no store {store.root}. Give store=<dir>, or make a bundle first (toolkit adopt).")
    open_console().print(bundles_table(store))
