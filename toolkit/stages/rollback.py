"""Stage `rollback`."""

from toolkit.bundle import Bundle, Store


def rollback(alias: str, *, store: Store, note: str = "") -> Bundle:
    """Point an alias back at what it served before its last promotion.

    The bundle it returns to is verified first, so a damaged one never goes into service.
    """
    previous = store.aliases.previous(alias)
    if previous is not None:
        store.open(previous)
    return store.open(store.aliases.rollback(alias, note))
