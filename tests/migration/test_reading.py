"""Checkpoints of every kind are read; code in them never runs; damage gives one error that names the file."""

import argparse
import os
import pickle
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.errors import InputRefused, UsageError
from toolkit.migration import open_checkpoint, read_checkpoint


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


STATE = net().state_dict()


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


def same(found: dict[str, Tensor]) -> bool:
    return list(found) == list(STATE) and all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


FORMS: dict[str, Any] = {
    "bare": STATE,
    "ordered": OrderedDict(STATE),
    "state_dict": {"state_dict": STATE, "epoch": 3, "best_acc1": torch.tensor(0.5)},
    "model": {
        "model": STATE,
        "optimizer": torch.optim.AdamW(net().parameters()).state_dict(),
        "args": argparse.Namespace(lr=1),
    },
    "model_state_dict": {"model_state_dict": STATE, "loss": np.float64(0.25)},
    "unlisted wrapper": {"my_very_own_name": {"inner": STATE}},
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled data parallel": prefixed("module._orig_mod."),
    "lightning": {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.0.0", "optimizer_states": [], "loops": {}},
    "lightning net": {"state_dict": prefixed("net._orig_mod."), "hyper_parameters": {"lr": 0.1}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_every_form_gives_the_same_tensors(form: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(FORMS[form], path, _use_new_zipfile_serialization=suffix != ".bin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read_checkpoint(path))


def test_a_real_optimizer_state_is_not_taken_for_weights(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "weights": model.state_dict()}, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt")) == list(STATE)


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.bin"):
        save_file(dict(STATE), tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in STATE.items())


def test_parts_of_compiled_modules_lose_the_inner_prefix(tmp_path: Path) -> None:
    torch.save({"0._orig_mod.weight": torch.ones(1), "1.weight": torch.ones(2)}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    assert list(checkpoint.tensors) == ["0.weight", "1.weight"]
    assert "_orig_mod." in checkpoint.notes[0]


def test_half_precision_is_kept_as_it_was(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({name: t.to(dtype) if t.is_floating_point() else t for name, t in STATE.items()}, tmp_path / "a.pt")
        assert read_checkpoint(tmp_path / "a.pt")["0.weight"].dtype == dtype


def test_of_several_sets_of_weights_the_user_chooses(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"state_dict": STATE, "state_dict_ema": average}, tmp_path / "a.pt")
    with pytest.raises(InputRefused, match=r"state_dict, state_dict_ema.*checkpoint=<file>#<name>"):
        read_checkpoint(tmp_path / "a.pt")
    chosen = open_checkpoint(tmp_path / "a.pt", entry="state_dict_ema")
    assert torch.equal(chosen.tensors["3.bias"], STATE["3.bias"] + 1)
    assert chosen.entry == "state_dict_ema"
    with pytest.raises(UsageError, match="state_dict_ema"):
        open_checkpoint(tmp_path / "a.pt", entry="state_dict_emma")


def test_a_prefix_chooses_among_modules_of_one_state_dict(tmp_path: Path) -> None:
    torch.save({"state_dict": {**prefixed("student."), **prefixed("teacher.")}}, tmp_path / "a.pt")
    assert same(dict(open_checkpoint(tmp_path / "a.pt", entry="teacher").tensors))
    assert same(dict(open_checkpoint(tmp_path / "a.pt", entry="state_dict/teacher.").tensors))


# --- nothing in a file is run -------------------------------------------------------------------------------------------


class Exploit:
    """Pickles to a call of `os.system` that would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def as_old_torch(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [as_zip, as_old_torch, as_pickle])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": STATE, "hyper_parameters": x}])
@pytest.mark.parametrize("forced", [False, True])
def test_a_malicious_pickle_runs_nothing(
    write: Callable[[Any, Path], None],
    wrap: Callable[[Any], Any],
    forced: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pth"
    write(wrap(Exploit(mark)), path)
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(InputRefused, match=r"model\.pth") as refusal:
        read_checkpoint(path)
    assert not mark.exists()
    assert "run code" in str(refusal.value)
    assert "weights_only=True" not in str(refusal.value)
    torch.load(path, weights_only=False) if write is not as_pickle else pickle.loads(path.read_bytes())
    assert mark.exists(), "the payload must be a working one"


def test_a_lightning_checkpoint_that_names_code_runs_none(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = {"state_dict": STATE, "hyper_parameters": {"_class_path": "os.system", "_instantiator": f"touch {mark}"}}
    torch.save(content, tmp_path / "a.ckpt")
    assert same(read_checkpoint(tmp_path / "a.ckpt"))
    assert not mark.exists()


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "model.pth")
    with pytest.raises(InputRefused) as refusal:
        read_checkpoint(tmp_path / "model.pth")
    for part in ("model.pth", "torch.nn.modules", "run code", "state_dict(), 'weights.pt')"):
        assert part in str(refusal.value)


def test_a_checkpoint_with_settings_in_it_is_refused_with_its_own_way_out(tmp_path: Path) -> None:
    settings = OmegaConf.create({"lr": 0.1})
    torch.save({"state_dict": STATE, "hyper_parameters": settings}, tmp_path / "last.ckpt")
    with pytest.raises(InputRefused, match=r"last\.ckpt.*omegaconf.*training checkpoint") as refusal:
        read_checkpoint(tmp_path / "last.ckpt")
    assert "torch.save(saved['state_dict'], 'weights.pt')" in str(refusal.value)


def test_the_average_of_torchs_own_averaging_is_read(tmp_path: Path) -> None:
    model = net()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    torch.save({"ema": {"module": average.module.state_dict(), "updates": 1}}, tmp_path / "ema.pt")
    assert same(read_checkpoint(tmp_path / "ema.pt"))
    torch.save(average.state_dict(), tmp_path / "average.pt")
    assert {"n_averaged", "module.0.weight"} <= set(read_checkpoint(tmp_path / "average.pt"))


def test_an_exported_program_is_refused_for_what_it_is(tmp_path: Path) -> None:
    program = torch.export.export(net().eval(), (torch.zeros(1, 3, 3, 3),))
    torch.export.save(program, tmp_path / "exported.pt2")
    (tmp_path / "exported.pt2").rename(tmp_path / "exported.pt")
    with pytest.raises(InputRefused, match="exported program"):
        read_checkpoint(tmp_path / "exported.pt")


@pytest.mark.parametrize("address", ["https://example.org/model.pth", "file:///tmp/model.pth", "s3://bucket/model.ckpt"])
def test_an_address_is_never_read(address: str) -> None:
    with pytest.raises(InputRefused, match="address"):
        read_checkpoint(address)


# --- damage -------------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    save_file(dict(STATE), path) if kind == "safetensors" else torch.save(
        STATE, path, _use_new_zipfile_serialization=kind == "zip"
    )
    return path


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.99])
def test_a_truncated_file_gives_one_error_that_names_it(kind: str, share: float, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputRefused, match=path.name):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_flipped_bytes_give_tensors_or_the_one_error(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    original, dice = path.read_bytes(), random.Random(0)
    for _ in range(60):
        content = bytearray(original)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        refusal = ""
        try:
            assert all(isinstance(tensor, Tensor) for tensor in read_checkpoint(path).values())
        except InputRefused as error:
            refusal = str(error)
        assert not refusal or path.name in refusal


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_garbage_gives_one_error_that_names_it(suffix: str, tmp_path: Path) -> None:
    dice = random.Random(1)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x08\x00\x00\x00\x00\x00\x00\x00{", b"<html>"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(start + dice.randbytes(400))
        with pytest.raises(InputRefused, match=path.name):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}, {"a": {"b": {}}}, {}])
def test_a_file_without_named_weights_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputRefused, match=r"a\.pt"):
        read_checkpoint(tmp_path / "a.pt")


def test_sparse_and_quantised_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(3).to_sparse(), "b": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(InputRefused, match="'w' is quantised or sparse"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_lists_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "resnet.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"resnet\.pth"):
        read_checkpoint(tmp_path / "resnet18.pth")
    with pytest.raises(UsageError, match="directory"):
        read_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint"):
        read_checkpoint(tmp_path / "absent" / "a.pth")
