"""An alias moves only on passed reports that speak of what it serves now."""

from dataclasses import replace

import pytest

from tests.release.conftest import Family, with_limit
from toolkit.errors import CheckFailed, Undecided
from toolkit.release.registry import promote


def test_promotion_moves_the_alias_and_repeating_it_changes_nothing(family: Family) -> None:
    promote(family.store, family.candidate, alias="production")
    assert family.store.aliases.current("production") == family.candidate.digest
    promote(family.store, family.candidate, alias="production")
    assert len(family.store.aliases.history("production")) == 2
    assert family.store.aliases.rollback("production") == family.baseline.digest


def test_a_failed_gate_refuses_and_names_the_broken_limit_with_its_reason(family: Family) -> None:
    family.change("gate", lambda report: with_limit(report, "negative_flip_rate", value=0.2, passed=False))
    with pytest.raises(CheckFailed, match=r"negative_flip_rate is 0.2 .*must be <= 0.05\. Why: budget") as caught:
        promote(family.store, family.candidate, alias="production")
    assert "latency" not in str(caught.value)
    assert family.store.aliases.current("production") == family.baseline.digest


def test_an_undecided_gate_refuses_with_its_own_exit_code(family: Family) -> None:
    family.change("gate", lambda report: with_limit(report, "negative_flip_rate", value=0.05, passed=None))
    with pytest.raises(Undecided, match="negative_flip_rate") as caught:
        promote(family.store, family.candidate, alias="production")
    assert caught.value.exit_code == 5


def test_a_missing_report_refuses_and_says_how_to_make_it(family: Family) -> None:
    with pytest.raises(CheckFailed, match=r"no 'gate' report.*toolkit gate"):
        promote(family.store, family.baseline, alias="candidate", required=["gate"])
    promote(family.store, family.baseline, alias="first", required=())
    assert family.store.aliases.current("first") == family.baseline.digest


def test_a_gate_against_another_model_than_the_one_in_service_does_not_count(family: Family) -> None:
    family.store.aliases.promote("production", family.store.ancestors(family.baseline)[0].digest)
    with pytest.raises(CheckFailed, match="now serves"):
        promote(family.store, family.candidate, alias="production")


def test_a_report_of_another_bundle_does_not_count(family: Family) -> None:
    stranger = replace(family.report("gate"), subjects=(family.baseline.digest, family.candidate.digest))
    family.store.add_report(stranger)
    promote(family.store, family.candidate, alias="production")
    with pytest.raises(CheckFailed, match="no 'parity' report"):
        promote(family.store, family.baseline, alias="other")
