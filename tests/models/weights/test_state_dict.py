"""Checkpoints of training scripts are read, and code in a file is never run."""

import argparse
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.weights.state_dict import read_state_dict
from stkd_keras.errors import InputError


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def tensors(torch):
    return {"linear.weight": torch.arange(12.0).reshape(3, 4), "linear.bias": torch.zeros(3)}


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", [".pth", ".th"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_checkpoints_of_training_scripts_are_read(ending, wrapper, torch, tensors, tmp_path):
    named = {f"module.{name}": torch.nn.Parameter(x) for name, x in tensors.items()}
    extras = {
        "opt": argparse.Namespace(lr=0.1, model="resnet8"),
        "best_acc": np.float64(75.5),
        "epoch": np.int64(240),
        "accuracy": torch.tensor([75.5]),
    }
    torch.save(named if wrapper is None else {wrapper: named, **extras}, tmp_path / f"m{ending}")
    state = read_state_dict(tmp_path / f"m{ending}")
    assert state.keys() == tensors.keys()
    np.testing.assert_array_equal(state["linear.weight"], np.arange(12).reshape(3, 4))


def test_bfloat16_tensors_are_read(torch, tensors, tmp_path):
    torch.save({name: x.bfloat16() for name, x in tensors.items()}, tmp_path / "m.pth")
    assert read_state_dict(tmp_path / "m.pth")["linear.weight"].dtype == np.float32


def test_files_without_a_state_dict_are_refused(torch, tmp_path):
    path = tmp_path / "m.pth"
    for content in (
        torch.zeros(3),
        [torch.zeros(3)],
        {"epoch": 3},
        {0: torch.zeros(3)},
        {"model": {}, "opt": argparse.Namespace(lr=0.1)},
    ):
        torch.save(content, path)
        assert "no state dict" in refusal(path)


class RunsCode:
    def __reduce__(self):
        return print, ("this was run",)


def test_a_files_code_is_not_run(torch, tensors, tmp_path, capsys):
    torch.save({**tensors, "linear.bias": RunsCode()}, tmp_path / "m.pth")
    assert "only tensors and plain containers" in refusal(tmp_path / "m.pth")
    assert "this was run" not in capsys.readouterr().out


def test_unusual_tensors_are_refused_by_name(torch, tensors, tmp_path):
    weight = tensors["linear.weight"]
    for odd in (
        weight.to_sparse(),
        weight.to("meta"),
        torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([weight[0], weight[1]]),
        weight.to(torch.complex64),
        torch.zeros(1).expand(1000, 1000),
    ):
        torch.save({**tensors, "linear.weight": odd}, tmp_path / "m.pth")
        message = refusal(tmp_path / "m.pth")
        assert "linear.weight" in message or "can't read" in message


def test_a_damaged_or_truncated_file_is_refused(torch, tensors, tmp_path):
    torch.save({"linear.weight": torch.rand(500, 500)}, tmp_path / "m.pth")
    content = bytearray((tmp_path / "m.pth").read_bytes())
    (tmp_path / "m.pth").write_bytes(content[:-1000])
    assert "can't read" in refusal(tmp_path / "m.pth")
    content[len(content) // 2] ^= 0x10
    (tmp_path / "m.pth").write_bytes(content)
    assert "is damaged" in refusal(tmp_path / "m.pth")


def test_a_truncated_or_missing_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    assert "no file" in refusal(path)
    save_file({"linear.bias": np.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "can't read" in refusal(path)


def test_without_pytorch_its_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "m.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(tmp_path / "m.pth")
    assert "pip install torch" in message
    assert ".safetensors" in message
