"""The card says what manifest and reports say, and keeps what people wrote."""

from pathlib import Path

import pytest

from tests.release.conftest import Family
from toolkit.errors import InputRefused
from toolkit.release.card import BEGIN, END, read_card
from toolkit.release.documents import write_card


def test_front_matter_is_read_by_the_hubs_library_with_the_reports_numbers(family: Family, tmp_path: Path) -> None:
    card = read_card(write_card(family.store, family.candidate, alias="production", output=tmp_path))
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert results == {"accuracy": 0.9, "balanced_accuracy": 0.85, "roc_auc": 0.9}
    assert card.data.to_dict()["pipeline_tag"] == "image-classification"
    assert {"onnx", "pruned"} <= set(card.data.tags or [])


def test_body_tells_delta_to_the_predecessor_and_its_regressions(family: Family, tmp_path: Path) -> None:
    text = write_card(family.store, family.candidate, alias="production", output=tmp_path).read_text()
    assert family.baseline.digest[:12] in text
    assert "| all | Balanced accuracy | 70.0% | 85.0% |" in text
    assert "Accuracy (mono) is worse than the predecessor's: 90.0% → 84.0%" in text
    assert "On 6 of 300 images" in text
    assert family.candidate.digest in text


def test_the_users_section_survives_regeneration_word_for_word(family: Family, tmp_path: Path) -> None:
    path = write_card(family.store, family.candidate, alias="production", output=tmp_path)
    mine = "## Intended use\n\nEnd of line only. Ask Zoë {{ before }} moving it. | <b>\n"
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{mine}\n{END}{rest.partition(END)[2]}")
    for _ in range(2):
        write_card(family.store, family.candidate, alias="production", output=tmp_path)
    assert mine.strip("\n") in path.read_text()
    first = path.read_bytes()
    write_card(family.store, family.candidate, alias="production", output=tmp_path)
    assert path.read_bytes() == first


def test_a_card_without_the_markers_is_not_overwritten(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "MODEL_CARD.md"
    path.write_text("all mine")
    with pytest.raises(InputRefused, match="marker"):
        write_card(family.store, family.candidate, alias="production", output=tmp_path)
    assert path.read_text() == "all mine"


def test_a_bundle_without_reports_gets_a_card_that_says_so(family: Family, tmp_path: Path) -> None:
    text = write_card(family.store, family.baseline, alias="first", output=tmp_path).read_text()
    assert "Not measured" in text
    assert "was not compared" in text
