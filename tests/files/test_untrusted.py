"""Hostile files: each is refused in one line, and does no harm."""

import collections
import json
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile

import h5py
import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from hostile_files import HUGE, link, refusal, zip_of_zeros

import models
from models.teachers.sources import read_class_names
from stkd_keras import RecordedTeacher
from stkd_keras.cli import app
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.errors import InputError
from stkd_keras.files import untrusted
from stkd_keras.files.json_files import read_json

SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (pathlib.Path.touch, (self.marker,))


def with_entries(path, changes):
    """Saves a good `.keras` file, and replaces some of its entries."""
    networks.small_convolutional_classifier().save(path.with_name("good.keras"))
    changed(path, path.with_name("good.keras"), changes)


def changed(path, old, changes):
    """Copies a zip archive, with other content under the names in `changes`."""
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w") as target:
        contents = {name: source.read(name) for name in source.namelist()}
        for name, content in {**contents, **changes}.items():
            target.writestr(name, content)


def with_config(path, change):
    """Changes the configuration in a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    change(config["config"])
    changed(
        path, path.rename(path.with_name("unchanged.keras")), {"config.json": json.dumps(config)}
    )


def safetensors_of(header, length=None, numbers=b""):
    """A safetensors file whose header may state another length."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + numbers


# .keras files


def test_the_commands_refuse_a_file_with_a_lambda_layer(repository, tmp_path):
    marker, folder = tmp_path / "marker", tmp_path / "work"
    folder.mkdir()
    code = eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]")
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Lambda(code)(inputs)))
    keras.Model(inputs, outputs).save(folder / "teacher.keras")
    marker.unlink()
    keras.saving.load_model(folder / "teacher.keras", safe_mode=False)
    assert marker.exists()
    marker.unlink()
    ended = subprocess.run(
        [sys.executable, repository / "train.py", "--student=resnet8", "--teacher=teacher.keras"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "teacher.keras has a Lambda layer" in line
    assert not marker.exists()
    assert [path.name for path in folder.iterdir()] == ["teacher.keras"]


def saved_model_that_writes(folder, marker):
    """A SavedModel that creates a file when it is loaded."""

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self):
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

        def _initialize(self):
            tf.io.write_file(str(marker), "")

        def _destroy_resource(self):
            pass

    module = tf.Module()
    module.resource = Resource()
    module.serve = tf.function(
        lambda x: (module.resource.resource_handle, x)[1], [tf.TensorSpec([None, 64])]
    )
    tf.saved_model.save(module, str(folder), signatures=module.serve.get_concrete_function())
    marker.unlink(missing_ok=True)


def test_a_function_that_keras_safe_mode_allows_is_refused(tmp_path):
    file, marker = tmp_path / "m.keras", tmp_path / "marker"
    saved_model_that_writes(tmp_path / "saved", marker)
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    x = keras.ops.switch(0, [keras.ops.concatenate], [flat, flat])
    keras.Model(inputs, keras.layers.Dense(10)(x)).save(file)

    def call_another_function(config):
        (node,) = (each for each in config["layers"] if each["class_name"] == "Switch")
        (call,) = node["inbound_nodes"]
        function = {"module": "keras.layers", "class_name": "function", "config": "TFSMLayer"}
        function["registered_name"] = None
        call["args"] = [0, [function], str(tmp_path / "saved"), call["args"][2][1]]

    with_config(file, call_another_function)
    with pytest.raises(TypeError):  # After Keras has loaded the SavedModel.
        keras.saving.load_model(file, safe_mode=True)
    assert marker.exists()
    marker.unlink()
    assert "'TFSMLayer' of 'keras.layers'" in refusal(models.load, file)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"module": "keras.utils", "class_name": "get_file"}, "isn't a part of models"),
        ({"module": "keras.layers", "class_name": "deserialize"}, "isn't a part of models"),
        ({"module": "keras_hub.models", "class_name": "Task"}, "isn't a part of models"),
        ({"class_name": "Dense"}, "isn't a part of models"),
        ({"module": "keras.layers", "class_name": "TorchModuleWrapper"}, "runs code"),
        ({"class_name": "__lambda__"}, "runs code"),
        # Keras imports nothing from elsewhere.
        ({"module": "os", "class_name": "function", "registered_name": "system"}, "can't load"),
        ({"module": None, "class_name": "Mine", "registered_name": "a>Mine"}, "can't load"),
    ],
)
def test_a_configuration_may_only_name_parts_of_models(part, reason, tmp_path):
    file = tmp_path / "m.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]).save(file)
    entry = {"config": {"name": "x"}, "registered_name": None, **part}
    with_config(file, lambda config: config["layers"].append(entry))
    message = refusal(models.load, file)
    assert reason in message
    assert part["class_name"].strip("_") in message


def test_parts_of_models_and_registered_classes_load(tmp_path, monkeypatch):
    @keras.saving.register_keras_serializable("hostile_files")
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    @keras.saving.register_keras_serializable("keras_hub")
    class Halved(keras.layers.Layer):
        def call(self, x):
            return x / 2

    Halved.__module__ = "keras_hub.src.layers"
    monkeypatch.setitem(sys.modules, "keras_hub", types.ModuleType("keras_hub"))
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 3, activation=keras.ops.silu, kernel_regularizer="l2")(inputs)
    x = keras.ops.concatenate([x, Halved()(Doubled()(x))])[:, 1:] + np.ones(2, "float32")
    x = layers.Bidirectional(layers.GRU(2))(layers.Reshape((-1, 4))(x))
    model = keras.Model(inputs, layers.Dense(10, dtype="mixed_float16", activation="relu")(x))
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(keras.optimizers.AdamW(schedule), keras.losses.MeanSquaredError(), ["accuracy"])
    model.save(tmp_path / "m.keras")
    assert models.load(tmp_path / "m.keras", **SMALL).count_params() == model.count_params()


def test_entries_outside_of_a_keras_file_are_not_written(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    with_entries(folder / "m.keras", {})
    with zipfile.ZipFile(folder / "m.keras", "a") as archive:
        for name in ("../marker", str(tmp_path / "marker"), link("link")):
            archive.writestr(name, b"/etc")
    assert models.load(folder / "m.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert sorted(path.name for path in folder.iterdir()) == ["good.keras", "m.keras"]


def test_a_keras_file_that_is_a_zip_bomb_or_nests_without_end_is_refused(tmp_path):
    path = tmp_path / "m.keras"
    zip_of_zeros(path, "config.json", 10**7, stated=HUGE)
    assert "expected text of at most 20" in refusal(models.load, path)
    with_entries(path, {"config.json": b"[" * 10**6})
    assert "JSON" in refusal(models.load, path)


# HDF5 files


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones(3)
    file["0"] = h5py.ExternalLink(folder / "other.h5", "x")
    assert file["0"][0] == 1


def external_storage(file, folder):
    (folder / "secret").write_bytes(b"secret!!")
    file.create_dataset("0", (1,), "S8", external=[(folder / "secret", 0, 8)])
    assert file["0"][0] == b"secret!!"


def virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones(3)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "x", (3,))
    file.create_virtual_dataset("0", layout)
    assert file["0"][0] == 1


def absent_numbers(file, folder):
    file.create_dataset("0", (HUGE // 4,), "float32", chunks=(1000,))
    assert file["0"][10**10] == 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (external_link, "ExternalLink"),
        (external_storage, "external Dataset"),
        (virtual, "virtual Dataset"),
        (absent_numbers, "bomb"),
    ],
)
def test_weights_outside_the_file_or_absent_are_refused(make, named, tmp_path):
    file = tmp_path / "m.weights.h5"
    with h5py.File(file, "w") as content:
        make(content.create_group("layers/conv2d/vars"), tmp_path)
    message = refusal(models.load, "resnet8", **SMALL, weights=file)
    assert f"{file} into resnet8 (Not allowed: " in message
    assert named in message
    with_entries(tmp_path / "m.keras", {"model.weights.h5": file.read_bytes()})
    assert "m.keras (Not allowed: " in refusal(models.load, tmp_path / "m.keras")


def test_links_in_older_weights_are_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink("other.h5", "x")
    name = "keras.applications:MobileNetV3Small"
    message = refusal(
        models.load, name, input_shape=(32, 32, 3), num_classes=10, weights=tmp_path / "m.h5"
    )
    assert "ExternalLink" in message


# PyTorch files


def test_code_in_any_kind_of_pytorch_file_is_refused(tmp_path):
    marker = tmp_path / "marker"
    payloads = {"state": RunsCode(marker), "builtin": collections.Counter, "eval": eval}
    for name, payload in payloads.items():
        content = pickle.dumps({"model": {}, "opt": payload}, protocol=2)
        (tmp_path / f"{name}.pth").write_bytes(content)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("m/data.pkl", content)
            archive.writestr("m/version", b"3\n")
            archive.writestr("m/byteorder", b"little")
    marker.unlink(missing_ok=True)
    for file in sorted(tmp_path.glob("*.*")):
        assert file.name in refusal(models.load, "resnet8", **SMALL, weights=file)
        assert not marker.exists()


def test_pytorch_itself_would_run_such_code(tmp_path):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    torch.save({"fc.weight": RunsCode(marker)}, tmp_path / "m.pth")
    assert not marker.exists()
    assert "tensors" in refusal(models.load, "resnet8", **SMALL, weights=tmp_path / "m.pth")
    assert not marker.exists()
    torch.load(tmp_path / "m.pth", weights_only=False)
    assert marker.exists()


def test_a_pytorch_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "m.pth"
    zip_of_zeros(path, "m/data.pkl", 10**7, stated=HUGE)
    with zipfile.ZipFile(path) as archive:
        assert "compressed" in refusal(untrusted.check_pytorch_zip, str(path), archive)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", bytes(10**6))
        archive.filelist.append(archive.filelist[0])
        archive.fp.flush()
        message = refusal(untrusted.check_pytorch_zip, str(path), archive)
    assert "entries in each other and would unpack to 2,000,000 bytes" in message


def test_a_pytorch_tensor_larger_than_its_numbers_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    huge = torch.zeros(1, dtype=torch.bfloat16).expand(HUGE)
    torch.save({"linear.weight": huge}, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 10_000
    message = refusal(models.load, "resnet8", **SMALL, weights=tmp_path / "m.pth")
    assert "linear.weight" in message


# safetensors files and recordings


ENTRY = {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of(b"{}", length=10**12),
        safetensors_of({"fc.weight": ENTRY}),
        safetensors_of({"fc.weight": {**ENTRY, "shape": [2**62, 4]}}, numbers=bytes(4000)),
        safetensors_of({"fc.weight": ENTRY, "fc.bias": ENTRY}, numbers=bytes(4000)),
        safetensors_of(b"[" * 10**6),
    ],
    ids=["header", "beyond", "overflow", "overlap", "nested"],
)
def test_a_safetensors_file_that_lies_about_its_size_is_refused(content, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(content)
    weights = tmp_path / "m.safetensors"
    assert "m.safetensors" in refusal(models.load, "resnet8", **SMALL, weights=weights)
    assert "m.safetensors" in refusal(RecordedTeacher, weights)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [("[]", [2, 3, 10]), ("[" * 10**5, [2, 3, 10]), ("{}", [6, 10]), ("{}", [2, -3, -10])],
)
def test_a_malformed_recording_is_refused(settings, shape, tmp_path):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 240]}
    header = {"__metadata__": {"stkd_keras": settings}, "logits": entry}
    (tmp_path / "t.replay").write_bytes(safetensors_of(header, numbers=bytes(240)))
    message = refusal(lambda: RecordedTeacher(tmp_path / "t.replay").check({"data_seed": 0}))
    assert "t.replay" in message


# Text


def test_text_that_is_huge_or_nests_without_end_is_refused(tmp_path):
    file = tmp_path / "config.json"
    for content in (b"[" * 10**6, b"{" * 10**6, b'{"a":' * 10**5, b"\xff", b"1" * 10**5):
        file.write_bytes(content)
        assert "config.json" in refusal(read_json, file)
    with file.open("wb") as opened:
        opened.truncate(HUGE)
    assert "expected text" in refusal(read_json, file)
    assert "expected text" in refusal(read_class_names, file)


def test_a_name_in_an_error_cannot_control_the_terminal(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../\x1b]0;title\x07", b"")
    error = refusal(open_tree, tmp_path / "a.zip")
    with pytest.raises(SystemExit):
        app._fail(InputError(f"{error} \x1b[2J\x9b2J"))
    printed = capsys.readouterr().err
    assert printed.isascii()
    assert all(character.isprintable() for character in printed.strip())
