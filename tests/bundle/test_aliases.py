"""Aliases move atomically, remember everything and go back."""

from pathlib import Path

import pytest

from tests.children import Child
from toolkit.bundle.aliases import Aliases
from toolkit.errors import InputRefused, UsageError

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def aliases(tmp_path: Path) -> Aliases:
    return Aliases(tmp_path / "aliases")


def test_promote_and_roll_back_walk_the_stack_of_what_was_served(aliases: Aliases) -> None:
    for digest in (A, B, C):
        aliases.promote("production", digest)
    assert aliases.rollback("production", "flips on line 3") == B
    assert aliases.rollback("production") == A
    aliases.promote("production", C)
    assert aliases.rollback("production") == A
    assert [(e.digest, e.action) for e in aliases.history("production")][3:] == [
        (B, "rollback"),
        (A, "rollback"),
        (C, "promote"),
        (A, "rollback"),
    ]
    assert aliases.history("production")[3].note == "flips on line 3"


def test_there_is_nothing_before_the_first(aliases: Aliases) -> None:
    with pytest.raises(UsageError, match="no earlier bundle"):
        aliases.rollback("production")
    for _ in range(2):  # promoting what is served already is no move
        aliases.promote("production", A)
    with pytest.raises(UsageError, match="no earlier bundle"):
        aliases.rollback("production")
    assert aliases.current("production") == A


@pytest.mark.parametrize("name", ["", "../x", "a/b", "1st", ".hidden", "x" * 65])
def test_names_are_plain(aliases: Aliases, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be an alias"):
        aliases.promote(name, A)


def test_a_damaged_file_is_named(aliases: Aliases) -> None:
    aliases.promote("production", A)
    (aliases.root / "production.json").write_text("{")
    with pytest.raises(InputRefused, match=r"production\.json is damaged"):
        aliases.current("production")


PROMOTER = "import sys; from pathlib import Path; from toolkit.bundle.aliases import Aliases\n"
PROMOTER += "for n in range(20): Aliases(Path(sys.argv[1])).promote('production', f'{sys.argv[2]}{n:063d}')"


def test_promotions_at_the_same_time_are_all_kept(aliases: Aliases) -> None:
    writers = [Child(PROMOTER, aliases.root, letter) for letter in "abcd"]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    kept = [entry.digest[0] for entry in aliases.history("production")]
    assert sorted(kept) == sorted("abcd" * 20)
