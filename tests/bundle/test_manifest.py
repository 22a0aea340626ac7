"""A manifest is data: its bytes and digest depend on its content alone, and only its own form is read back."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.bundle import Architecture, Manifest, Plan, Preprocessing, TensorSpec
from toolkit.bundle.manifest import SCHEMA, from_plain
from toolkit.errors import InputRefused, UsageError


def test_reading_back_gives_the_same_manifest_and_digest(manifest: Manifest) -> None:
    pruned = replace(manifest, plan=Plan({"conv1.weight": {"0": (0, 2)}}, {"conv1": {"out_channels": 2}}))
    for original in (manifest, pruned):
        again = Manifest.from_json(original.canonical_json(), "here")
        assert again == original
        assert again.digest == original.digest
    assert pruned.digest != manifest.digest


def test_equal_content_has_equal_digest_whatever_the_order(manifest: Manifest) -> None:
    first = replace(manifest, architecture=Architecture("k", {"a": 1, "b": 2}))
    second = replace(manifest, architecture=Architecture("k", {"b": 2, "a": 1}))
    assert first.digest == second.digest


@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 99), max_size=5), max_size=4))
def test_any_plan_survives_the_disk(kept: dict[str, list[int]]) -> None:
    plan = Plan({name: {"0": tuple(channels)} for name, channels in kept.items()})
    assert from_plain(Plan, json.loads(json.dumps({"kept": plan.kept, "attributes": {}}))) == plan


def test_a_newer_schema_is_refused_with_the_way_out(manifest: Manifest) -> None:
    newer = replace(manifest, schema=SCHEMA + 1).canonical_json()
    with pytest.raises(InputRefused, match="upgrade model-upgrade-toolkit"):
        Manifest.from_json(newer, "here")


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("labels"),
        lambda plain: plain.update(labels="functional"),
        lambda plain: plain.update(labels=[1, 2]),
        lambda plain: plain.update(surprise=1),
        lambda plain: plain["preprocessing"].update(size_px=[64]),
        lambda plain: plain["preprocessing"].update(interpolation="magic"),
        lambda plain: plain.update(schema="1"),
    ],
)
def test_another_form_is_refused_and_named(manifest: Manifest, damage) -> None:
    plain = json.loads(manifest.canonical_json())
    damage(plain)
    with pytest.raises(InputRefused, match=r"store/manifest\.json"):
        Manifest.from_json(json.dumps(plain).encode(), "store/manifest.json")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"3", b"{"])
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(InputRefused):
        Manifest.from_json(content, "here")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size_px": (0, 8)}, "size_px"),
        ({"size_px": (8, 8), "mean": (0.5,)}, "mean and std"),
        ({"size_px": (8, 8), "colour": "CMYK"}, "RGB or L"),
        ({"size_px": (8, 8), "resize": "stretch"}, "squash or crop"),
        ({"size_px": (8, 8), "interpolation": "best"}, "bicubic"),
        ({"size_px": (8, 8), "crop_fraction": 0.0}, "crop_fraction"),
        ({"size_px": (8, 8), "std": (0.0, 1.0, 1.0)}, "positive"),
    ],
)
def test_preprocessing_says_what_to_type_instead(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing(**settings)


def test_symbolic_and_fixed_dims_keep_their_kind() -> None:
    spec = TensorSpec("images", "float32", ("batch", 3, 8, 8), "NCHW", "pixels", (0.0, 255.0))
    again = from_plain(TensorSpec, json.loads(json.dumps(spec.__dict__)))
    assert again == spec
    assert [type(dim) for dim in again.dims] == [str, int, int, int]
