"""Files that somebody made to do harm: each is refused in one line, and does none.

That they would do harm without the checks is seen first, where that takes no harm to see.
"""

import collections
import io
import json
import pathlib
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib

import h5py
import keras
import networks
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import tensorflow as tf
import tensorflow_datasets as tfds
from image_folders import CINIC_CLASSES

import models
from models.teachers.sources import read_class_names
from stkd_keras import RecordedTeacher, data
from stkd_keras.cli import app
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.errors import InputError
from stkd_keras.files import untrusted
from stkd_keras.files.json_files import read_json

HUGE = 100 * 10**9
SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}
DIGITS = ("--teacher=resnet8", "--student=resnet8", "--epochs=1")


def refusal(function, *arguments, megabytes=250, **settings):
    """What a call is refused with, in one line, within seconds and little memory."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(InputError) as caught:
            function(*arguments, **settings)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 10**6
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


# What is in the files.


class RunsCode:
    """What a pickle runs when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (pathlib.Path.touch, (self.marker,))


def lambda_model(path, marker):
    """A model whose Lambda layer writes a file."""
    code = eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]")
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Lambda(code)(inputs)))
    keras.Model(inputs, outputs).save(path)
    marker.unlink()


def changed(path, old, changes):
    """Copies a zip archive, with other contents under the names that `changes` has."""
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w") as target:
        contents = {name: source.read(name) for name in source.namelist()}
        for name, content in {**contents, **changes}.items():
            target.writestr(name, content)


def saved_model_that_writes(folder, marker):
    """A SavedModel that writes a file when it is loaded."""

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


def switching_model(path, function, operand):
    """A model with an operation that calls a function of Keras's while it is loaded."""
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    x = keras.ops.switch(0, [keras.ops.concatenate], [flat, flat])
    keras.Model(inputs, keras.layers.Dense(10)(x)).save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    (node,) = (layer for layer in config["config"]["layers"] if layer["class_name"] == "Switch")
    (call,) = node["inbound_nodes"]
    (tensor, _) = call["args"][2]
    call["args"] = [0, [function], operand, tensor]
    other = path.with_name("other")
    path.rename(other)
    changed(path, other, {"config.json": json.dumps(config)})


def zip_of_zeros(path, name, size, stated=None):
    """A zip of one file of zeros, a thousandth of its size, which may state another size."""
    block = 10**8
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    # After the first full flush each block is packed alike.
    first, again = (
        compressor.compress(bytes(block)) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    stated = size if stated is None else stated
    packed = len(first) + (size // block - 1) * len(again) + len(compressor.flush())
    # The fields of a zip's headers: the sizes are in the extra one, of 64 bits.
    common = struct.pack("<HHHHHLLL", 45, 0, 8, 0, 33, zlib.crc32(bytes(min(stated, block))),
                         2**32 - 1, 2**32 - 1)  # fmt: skip
    sizes = struct.pack("<HHQQ", 1, 16, stated, packed)
    names = struct.pack("<HH", len(name), len(sizes))
    with path.open("wb") as file:
        file.write(b"PK\3\4" + common + names + name.encode() + sizes + first)
        for _ in range(size // block - 1):
            file.write(again)
        file.write(zlib.compressobj(9, zlib.DEFLATED, -15).flush())
        start = file.tell()
        directory = struct.pack("<HHHLL", 0, 0, 0, 0, 0)
        file.write(b"PK\1\2\x2d\0" + common + names + directory + name.encode() + sizes)
        end = file.tell()
        file.write(b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, end - start, start, 0))


def tar_entry(name="train/a.png", size=0, kind=tarfile.REGTYPE, link=""):
    """An entry of a tar archive, with as many zeros as it says if they aren't too many."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = size, kind, link
    padded = -(-min(size, 300 * 10**6) // 512) * 512
    return entry.tobuf(tarfile.GNU_FORMAT) + bytes(padded)


def cinic_names():
    names = CINIC_CLASSES
    return [f"{split}/{name}/0.png" for split in ("train", "valid", "test") for name in names]


def png(width=32, height=32):
    """A black PNG, whose pixels needn't be in memory at once."""
    line = bytes(1 + width // 8)
    compressor = zlib.compressobj(9)
    pixels = b"".join(compressor.compress(line) for _ in range(height)) + compressor.flush()

    def chunk(kind, content):
        checksum = struct.pack(">L", zlib.crc32(kind + content))
        return struct.pack(">L", len(content)) + kind + content + checksum

    header = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
    beginning = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return beginning + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def cinic_zip(path, extra=()):
    """CINIC-10 with one image a class, and further entries."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in cinic_names():
            archive.writestr(name, png())
        for name, content in extra:
            archive.writestr(name, content)


def safetensors_of(header, length=None, numbers=b""):
    """A safetensors file of a header that may say another length."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + numbers


# Through the commands.


def tree(folder):
    """What is in a folder, and when it was written."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# From a small process in between: a new one inherits the peak of the one that starts it.
MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def assert_refused(repository, folder, script, *flags, named):
    """A command ends with status 2, one line, within 90 s and 1.3 GB, and changes nothing."""
    before = tree(folder)
    with (folder.parent / "out").open("w") as out:
        completed = subprocess.run(
            [sys.executable, "-c", MEASURED, sys.executable, repository / script, *flags],
            cwd=folder, stdout=out, stderr=subprocess.PIPE, text=True, timeout=90, check=False,
        )  # fmt: skip
    *lines, peak = completed.stderr.strip().splitlines()
    assert completed.returncode == 2, lines
    (line,) = lines
    assert line.startswith(f"{script}: error: ")
    assert "Traceback" not in line
    for word in named:
        assert word in line, line
    assert int(peak) < 1.3 * 2**20  # TensorFlow alone takes 0.7.
    assert tree(folder) == before


@pytest.fixture
def folder(tmp_path):
    """The folder that a command runs in."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_keras_file_with_a_lambda_layer_is_refused(repository, folder, tmp_path):
    file, marker = folder / "teacher.keras", tmp_path / "marker"
    lambda_model(file, marker)
    keras.saving.load_model(file, safe_mode=False)
    assert marker.exists()
    marker.unlink()
    assert_refused(
        repository, folder, "train.py", *DIGITS[1:], f"--teacher={file}",
        named=["teacher.keras", "Lambda", "safe mode", "expected"],
    )  # fmt: skip
    assert not marker.exists()


def test_a_pytorch_file_with_code_in_its_pickle_is_refused(repository, folder, tmp_path):
    file, marker = folder / "teacher.pth", tmp_path / "marker"
    file.write_bytes(pickle.dumps({"conv1.weight": RunsCode(marker)}))
    pickle.loads(file.read_bytes())
    assert marker.exists()
    marker.unlink()
    assert_refused(
        repository, folder, "train.py", *DIGITS, f"--teacher_weights={file}",
        named=["teacher.pth", ".safetensors" if "torch" not in installed() else "tensors"],
    )  # fmt: skip
    assert not marker.exists()


def test_a_zip_that_leads_out_of_its_folder_is_refused(repository, folder, tmp_path):
    cinic_zip(folder / "cinic10.zip", [("../marker", b"")])
    assert (folder / "../marker").resolve() == tmp_path / "marker"
    assert_refused(
        repository, folder, "train.py", *DIGITS, "--dataset=cinic10", "--data_dir=cinic10.zip",
        named=["cinic10.zip", "'../marker'", "points out of the archive"],
    )  # fmt: skip
    assert not (tmp_path / "marker").exists()


def test_a_zip_that_unpacks_to_100_gb_is_refused(repository, folder):
    file = folder / "cinic10.zip"
    zip_of_zeros(file, "train/airplane/0.png", HUGE)
    with zipfile.ZipFile(file) as archive, archive.open("train/airplane/0.png") as content:
        assert archive.infolist()[0].file_size == HUGE
        assert all(content.read(10**7) == bytes(10**7) for _ in range(20))
    assert_refused(
        repository, folder, "train.py", *DIGITS, "--dataset=cinic10", f"--data_dir={file}",
        named=["cinic10.zip", "'train/airplane/0.png'", "100,000 MB"],
    )  # fmt: skip


def test_a_safetensors_file_with_a_header_of_1_tb_is_refused(repository, folder):
    (folder / "student.safetensors").write_bytes(safetensors_of(b"{}", length=10**12))
    assert_refused(
        repository, folder, "evaluate.py", "--model=resnet8", "--weights=student.safetensors",
        named=["student.safetensors", "header", "expected"],
    )  # fmt: skip


def test_a_run_whose_config_nests_without_end_is_refused(repository, folder):
    (folder / "student.keras").write_bytes(b"")
    (folder / "config.json").write_text("[" * 10**6)
    assert_refused(
        repository, folder, "evaluate.py", f"--model={folder}", named=["config.json", "JSON"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "teachers"),
    [
        ([], []),
        ({"dataset": ["digits"]}, []),
        ({"dataset": "digits", "data_dir": 1}, []),
        ({"dataset": "tfds:huggingface:evil"}, []),
        ({"dataset": "digits"}, "resnet8"),
        ({"dataset": "digits"}, [{"source": "resnet8", "nonsense": 1}]),
        ({"dataset": "digits"}, [{"weights": "a.pth"}]),
    ],
)
def test_a_run_whose_config_is_something_else_is_refused(repository, folder, settings, teachers):
    (folder / "student.keras").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"settings": settings, "teachers": teachers}))
    assert_refused(repository, folder, "evaluate.py", f"--model={folder}", named=["config.json"])


@pytest.mark.slow
def test_a_recording_with_a_header_of_1_tb_is_refused(repository, folder):
    networks.small_convolutional_classifier().save(folder / "teacher.keras")
    (folder / "t.replay").write_bytes(safetensors_of(b'{"logits": {}}', length=10**12))
    assert_refused(
        repository, folder, "train.py", "--teacher=teacher.keras", "--student=resnet8",
        "--replay=t.replay", named=["t.replay", "isn't a recording"],
    )  # fmt: skip


@pytest.mark.slow
def test_a_tar_that_unpacks_to_100_gb_is_refused(repository, folder):
    with tarfile.open(folder / "cinic10.tar.gz", "w:gz") as archive:
        archive.fileobj.write(tar_entry(size=HUGE))
    assert_refused(
        repository, folder, "train.py", *DIGITS, "--dataset=cinic10", "--data_dir=cinic10.tar.gz",
        named=["cinic10.tar.gz", "100,000 MB"],
    )  # fmt: skip


def installed():
    """The packages that are there, of those that needn't be."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return ()
    return ("torch",)


# .keras files.


def test_a_function_of_keras_that_safe_mode_lets_through_is_refused(tmp_path):
    file, marker = tmp_path / "m.keras", tmp_path / "marker"
    saved_model_that_writes(tmp_path / "saved", marker)
    function = {"module": "keras.layers", "class_name": "function", "config": "TFSMLayer"}
    switching_model(file, {**function, "registered_name": None}, str(tmp_path / "saved"))
    with pytest.raises(TypeError):  # Too late: the SavedModel is loaded.
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
        ({"module": "keras.datasets.mnist", "class_name": "load_data"}, "isn't a part of models"),
        ({"module": "keras_hub.models", "class_name": "Task"}, "isn't a part of models"),
        ({"class_name": "Dense"}, "isn't a part of models"),
        ({"module": "keras.layers", "class_name": "TFSMLayer"}, "code of whoever made the file"),
        ({"module": "keras.layers", "class_name": "TorchModuleWrapper"}, "code of whoever made"),
        ({"class_name": "__lambda__"}, "code of whoever made the file"),
        # Keras itself imports nothing from elsewhere.
        ({"module": "os", "class_name": "system"}, "can't load"),
        ({"module": "os", "class_name": "function", "registered_name": "system"}, "can't load"),
        ({"module": None, "class_name": "Mine", "registered_name": "a>Mine"}, "can't load"),
    ],
)
def test_a_part_that_isnt_one_of_models_is_refused(part, reason, tmp_path):
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]).save(tmp_path / "old.keras")
    with zipfile.ZipFile(tmp_path / "old.keras") as archive:
        config = json.loads(archive.read("config.json"))
    config["config"]["layers"].append({"config": {"name": "x"}, "registered_name": None, **part})
    changed(tmp_path / "m.keras", tmp_path / "old.keras", {"config.json": json.dumps(config)})
    message = refusal(models.load, tmp_path / "m.keras")
    assert reason in message
    assert part["class_name"].strip("_") in message


def test_parts_of_models_and_registered_classes_load(tmp_path):
    @keras.saving.register_keras_serializable("hostile_files")
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 3, activation=keras.ops.silu, kernel_regularizer="l2")(inputs)
    x = keras.ops.concatenate([x, Doubled()(x)])[:, 1:] + np.ones(2, "float32")
    x = layers.Bidirectional(layers.GRU(2))(layers.Reshape((-1, 4))(x))
    model = keras.Model(inputs, layers.Dense(10, dtype="mixed_float16", activation="relu")(x))
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(keras.optimizers.AdamW(schedule), keras.losses.MeanSquaredError(), ["accuracy"])
    model.save(tmp_path / "m.keras")
    assert models.load(tmp_path / "m.keras", **SMALL).count_params() == model.count_params()


def keras_with(path, changes):
    """A good `.keras` file but for these entries."""
    networks.small_convolutional_classifier().save(path.with_name("good.keras"))
    changed(path, path.with_name("good.keras"), changes)


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry


def test_entries_of_a_keras_file_that_lead_out_of_it_are_refused(tmp_path):
    path = tmp_path / "m.keras"
    for name in ("../marker", "assets/../../marker", str(tmp_path / "marker"), link("assets")):
        keras_with(path, {})
        assert models.load(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"/etc")
        assert repr(getattr(name, "filename", name)) in refusal(models.load, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["good.keras", "m.keras"]


def test_a_keras_file_that_unpacks_to_more_than_its_own_size_is_refused(tmp_path):
    path = tmp_path / "m.keras"
    zip_of_zeros(path, "config.json", HUGE)
    assert "config.json" in refusal(models.load, path)
    keras_with(path, {})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):  # Each below what Keras refuses; it unpacks them all.
            archive.writestr(f"assets/{number}", bytes(50 * 10**6))
    message = refusal(models.load, path)
    assert "'assets/0' compressed" in message
    assert f"at most its own {path.stat().st_size:,}" in message


def test_entries_of_a_keras_file_that_share_their_content_are_refused(tmp_path):
    path = tmp_path / "m.keras"
    keras_with(path, {"assets/0": bytes(10**6)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("assets", b"")
        archive.filelist += [sharing(f"assets/{n}", archive.getinfo("assets/0")) for n in (1, 2)]
    assert f"at most its own {path.stat().st_size:,}" in refusal(models.load, path)


def sharing(name, entry):
    """An entry of a zip archive with the content of another one."""
    other = zipfile.ZipInfo(name)
    for field in ("header_offset", "file_size", "compress_size", "compress_type", "CRC"):
        setattr(other, field, getattr(entry, field))
    return other


def test_a_configuration_that_is_huge_or_nests_without_end_is_refused(tmp_path):
    path = tmp_path / "m.keras"
    keras_with(path, {"config.json": b"[" * 10**6})
    assert "JSON" in refusal(models.load, path)
    keras_with(path, {"config.json": b"[" + b"[]," * 10**7 + b"0]"})
    assert "expected text of at most 20" in refusal(models.load, path)


# HDF5 files.


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones(3)
    file["0"] = h5py.ExternalLink(folder / "other.h5", "x")
    assert file["0"][0] == 1


def soft_link(file, folder):
    file["x"] = np.ones(3)
    file["0"] = h5py.SoftLink(f"{file.name}/x")
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


def absent_contiguous_numbers(file, folder):
    file.create_dataset("0", (HUGE // 4,), "float32")


def compressed_numbers(file, folder):
    file.create_dataset("0", data=np.zeros(10**6), compression="gzip")


def chunk_that_expands(file, folder):
    """A chunk of eight bytes, as it says, that HDF5 unpacks to as much as was packed."""
    numbers = file.create_dataset("0", (2,), "float32", chunks=(2,), compression="gzip")
    numbers.id.write_direct_chunk((0,), zlib.compress(bytes(2 * 10**7)))


def texts_in_each_other(file, folder):
    file.create_dataset("0", data=["x" * 10**6] * 3, dtype=h5py.string_dtype())


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (external_link, "a link"),
        (soft_link, "a link"),
        (external_storage, "another file"),
        (virtual, "another file"),
        (absent_numbers, "aren't there"),
        (absent_contiguous_numbers, "aren't there"),
        (compressed_numbers, "compressed"),
        (chunk_that_expands, "compressed"),
        (texts_in_each_other, "other things than numbers"),
    ],
)
def test_an_hdf5_file_that_leads_elsewhere_or_lies_about_its_size_is_refused(
    make, named, ending, tmp_path
):
    file = tmp_path / "m.weights.h5"
    with h5py.File(file, "w") as content:
        make(content.create_group("layers/conv2d/vars"), tmp_path)
    if ending == ".keras":
        keras_with(tmp_path / "m.keras", {"model.weights.h5": file.read_bytes()})
        message = refusal(models.load, tmp_path / "m.keras")
    else:
        message = refusal(models.load, "resnet8", **SMALL, weights=file)
    assert named in message
    assert "weights.h5" in message


def test_an_applications_older_weights_are_looked_at_too(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink("other.h5", "x")
    name = "keras.applications:MobileNetV3Small"
    message = refusal(
        models.load, name, input_shape=(32, 32, 3), num_classes=10, weights=tmp_path / "m.h5"
    )
    assert "a link, 'model_weights'" in message


# PyTorch's files.


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


def test_that_pytorch_would_run_such_code(tmp_path):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    torch.save({"fc.weight": RunsCode(marker)}, tmp_path / "m.pth")
    assert not marker.exists()
    assert "tensors" in refusal(models.load, "resnet8", **SMALL, weights=tmp_path / "m.pth")
    assert not marker.exists()
    torch.load(tmp_path / "m.pth", weights_only=False)
    assert marker.exists()


def test_a_pytorch_file_that_unpacks_to_100_gb_is_refused(tmp_path):
    zip_of_zeros(tmp_path / "m.pth", "m/data.pkl", HUGE)
    message = refusal(models.load, "resnet8", **SMALL, weights=tmp_path / "m.pth")
    assert "compressed" in message or "needs PyTorch" in message


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    huge = torch.zeros(1, dtype=torch.bfloat16).expand(HUGE)
    torch.save({"linear.weight": huge}, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 10_000
    message = refusal(models.load, "resnet8", **SMALL, weights=tmp_path / "m.pth")
    assert "linear.weight" in message


# safetensors files, and recordings.


ENTRY = {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of(b"{}", length=10**12),
        safetensors_of(b"{}", length=2**64 - 1),
        safetensors_of({"fc.weight": ENTRY}),
        safetensors_of({"fc.weight": {**ENTRY, "shape": [10**12]}}, numbers=bytes(4000)),
        safetensors_of({"fc.weight": {**ENTRY, "shape": [2**62, 4]}}, numbers=bytes(4000)),
        safetensors_of({"fc.weight": ENTRY, "fc.bias": ENTRY}, numbers=bytes(4000)),
        safetensors_of({"fc.weight": {**ENTRY, "data_offsets": [4000, 0]}}, numbers=bytes(4000)),
        safetensors_of(b"[" * 10**6),
        safetensors_of(b"\x80\x04cos\nsystem\n"),
    ],
    ids=["1 TB", "2^64", "beyond", "shape", "overflow", "overlap", "backwards", "nested", "pickle"],
)
def test_a_safetensors_file_that_lies_about_its_size_is_refused(content, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(content)
    weights = tmp_path / "m.safetensors"
    assert "m.safetensors" in refusal(models.load, "resnet8", **SMALL, weights=weights)
    assert "m.safetensors" in refusal(RecordedTeacher, weights)


@pytest.mark.parametrize("settings", ["[]", "1", "[" * 10**5, '"x"'])
@pytest.mark.parametrize("shape", [[2, 3, 10], [0, 3, 10], [6, 10], [2, -3, -10], "abc", None])
def test_a_recording_that_is_something_else_is_refused(settings, shape, tmp_path):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 240]}
    header = {"__metadata__": {"stkd_keras": settings}, "logits": entry}
    (tmp_path / "t.replay").write_bytes(safetensors_of(header, numbers=bytes(240)))

    def used():
        RecordedTeacher(tmp_path / "t.replay").check({"data_seed": 0})

    assert "t.replay" in refusal(used)


def test_a_good_recording_is_read(tmp_path):
    metadata = {"stkd_keras": json.dumps({"data_seed": 0})}
    logits = np.ones((2, 3, 10), "float16")
    safetensors.numpy.save_file({"logits": logits}, tmp_path / "t.replay", metadata)
    recorded = RecordedTeacher(tmp_path / "t.replay")
    assert (recorded.settings, recorded.steps, recorded.num_classes) == ({"data_seed": 0}, 2, 10)


# Data.


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", ["../marker", "train/../../marker", "/tmp/marker", "link"])
def test_an_entry_that_leads_out_of_a_data_sets_archive_is_refused(name, ending, tmp_path):
    path = tmp_path / f"cinic10.{ending}"
    if ending == "zip":
        cinic_zip(path, [(link(name) if name == "link" else name, b"/etc/passwd")])
    else:
        kind = tarfile.SYMTYPE if name == "link" else tarfile.REGTYPE
        content = tar_entry(name, kind=kind, link="/etc/passwd") + bytes(1024)
        with tarfile.open(path, "w:gz" if ending == "tar.gz" else "w") as archive:
            archive.fileobj.write(content)
    assert repr(name) in refusal(data.load, "cinic10", path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(kind, tmp_path):
    path = tmp_path / "cinic10.tar"
    path.write_bytes(tar_entry("x", kind=kind, link="/etc/passwd") + bytes(1024))
    assert "is a link or a device" in refusal(data.load, "cinic10", path)


def test_a_zip_that_states_less_than_it_unpacks_to_is_read_no_further(tmp_path):
    zip_of_zeros(tmp_path / "a.zip", "a", 10**9, stated=1000)
    tree = open_tree(tmp_path / "a.zip")
    tracemalloc.start()
    try:
        assert tree.read("a") == bytes(1000)
        assert tracemalloc.get_traced_memory()[1] < 50 * 10**6
    finally:
        tracemalloc.stop()


def test_many_files_that_unpack_to_too_much_together_are_refused(tmp_path):
    block = bytes(untrusted.LARGEST_MEMBER)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/0", block)
        numbers = range(1, 1 + untrusted.LARGEST_ARCHIVE // len(block))
        archive.filelist += [sharing(f"train/{n}", archive.filelist[0]) for n in numbers]
    assert (tmp_path / "a.zip").stat().st_size < 10**6
    assert "unpacks to 10.1 GB" in refusal(open_tree, tmp_path / "a.zip")


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar_that_unpacks_to_100_gb_is_refused_at_its_first_entry(ending, tmp_path):
    path = tmp_path / f"cinic10.{ending}"
    with tarfile.open(path, f"w:{ending[4:]}") as archive:
        archive.fileobj.write(tar_entry(size=HUGE))
    assert "100,000 MB" in refusal(data.load, "cinic10", path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tars_header_that_would_fill_the_memory_is_refused(kind, tmp_path):
    path = tmp_path / "cinic10.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.fileobj.write(tar_entry("a", size=300 * 10**6, kind=kind))
    assert path.stat().st_size < 10**6
    assert "implausibly long" in refusal(data.load, "cinic10", path, megabytes=50)


def test_a_map_of_holes_in_a_tar_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "cinic10.tar.gz"
    marks = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
    entry = tarfile.TarInfo("a")
    entry.pax_headers = {**marks, "GNU.sparse.realsize": "1"}
    with tarfile.open(path, "w:gz") as archive:
        archive.fileobj.write(entry.tobuf(tarfile.PAX_FORMAT))
        archive.fileobj.write(b"99999999999\n" + b"0\n" * 10**6)
    assert "implausibly long" in refusal(data.load, "cinic10", path, megabytes=100)


def test_too_many_zeros_after_a_tar_are_refused(tmp_path):
    path = tmp_path / "cinic10.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.fileobj.write(tar_entry() + bytes(2 * untrusted.LARGEST_MEMBER))
    assert "too many zeros" in refusal(data.load, "cinic10", path)


def test_an_image_of_gigapixels_is_refused(tmp_path):
    content = png(40_000, 40_000)
    assert len(content) < 10**6
    with PIL.Image.open(io.BytesIO(png(8_000, 8_000))) as image:  # As good as any other.
        assert image.size == (8_000, 8_000)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "a.png").write_bytes(content)
    message = refusal(data.load, "folder", tmp_path, image_size=8)
    assert "implausibly large" in message


def prepared(root, features):
    folder = root / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(features))
    about = {"name": "cifar10", "version": "3.0.2", "fileFormat": "tfrecord", "splits": []}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_prepared_data_set_that_names_a_module_to_import_is_refused(key, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    for number in (1, 2):
        code = f"open({str(marker)!r}, 'w').close()"
        (tmp_path / f"hostile_{key}_{number}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    dictionary = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    first, inner = ({key: f"hostile_{key}_{number}.Image"} for number in (1, 2))
    if key == "type":  # As it was until 2022.
        first, inner = ({**each, "content": {}} for each in (first, inner))
        features = {key: dictionary, "content": {"image": inner}}
    else:
        features = {key: dictionary, "featuresDict": {"features": {"image": inner}}}
    with pytest.raises(ValueError, match="Unrecognized"):
        tfds.builder_from_directory(prepared(tmp_path / "1", first))
    assert marker.exists()
    marker.unlink()
    prepared(tmp_path / "2", features)
    message = refusal(data.load, "cifar10", tmp_path / "2")
    assert f"hostile_{key}_2.Image" in message
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "cifar10").symlink_to(tmp_path / "2" / "cifar10")
    assert "features.json" in refusal(data.load, "cifar10", tmp_path / "3")
    assert not marker.exists()


# Text.


def test_text_that_is_huge_or_nests_without_end_is_refused(tmp_path):
    file = tmp_path / "config.json"
    for content in (b"[" * 10**6, b"{" * 10**6, b'{"a":' * 10**5, b"\xff", b"1" * 10**5):
        file.write_bytes(content)
        assert "config.json" in refusal(read_json, file)
    with file.open("wb") as opened:
        opened.truncate(HUGE)
    assert "expected text" in refusal(read_json, file)
    assert "expected text" in refusal(read_class_names, file)


def test_a_name_from_a_file_cant_command_the_terminal(tmp_path, capsys):
    cinic_zip(tmp_path / "a.zip", [("../\x1b]0;title\x07", b"")])
    error = refusal(open_tree, tmp_path / "a.zip")
    with pytest.raises(SystemExit):
        app._fail(InputError(f"{error} \x1b[2J\x9b2J"))
    printed = capsys.readouterr().err
    assert printed.isascii()
    assert all(character.isprintable() for character in printed.strip())
