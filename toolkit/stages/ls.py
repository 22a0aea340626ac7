"""Stage `ls`."""

from toolkit.bundle import Store
from toolkit.release.tables import bundles_table, open_console


def ls(*, store: Store) -> None:
    """List the bundles of the store with their aliases, makers and verdicts."""
    open_console().print(bundles_table(store))
