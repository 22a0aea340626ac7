"""Stage `ls`."""

from rich.console import Console

from toolkit.bundle import Store
from toolkit.release.tables import bundles_table


def ls(*, store: Store) -> None:
    """List the bundles of the store with their aliases, makers and verdicts."""
    Console().print(bundles_table(store))
