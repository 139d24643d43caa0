"""Teachers in ONNX files: whatever the input's layout, size and type, the logits are right."""

import networks
import numpy as np
import onnx_files
import pytest
import tensorflow as tf

import models
from models.teachers import TeacherSource, load_onnx, load_teachers
from stkd_keras import FrozenTeacher, InputError, Mixup, data, experiment, record_teacher

SHAPE = (4, 6, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(4 * 6 * 3, 5)).astype(np.float32) / 10
PIXELS = RNG.uniform(0, 255, (4, *SHAPE)).astype(np.float32)


def log_softmax(logits):
    return tf.nn.log_softmax(np.float64(logits)).numpy()


@pytest.mark.parametrize(
    ("dtype", "input_shape", "normalized"),
    [
        ("float32", [None, 4, 6, 3], False),
        ("float32", [None, 3, 4, 6], True),
        ("float64", [2, 3, 4, 6], True),
        ("float16", [3, 4, 6, 3], True),
        ("uint8", ["batch", 3, 4, 6], False),
        ("int64", [1, 4, 6, 3], False),
        ("float32", ["n", 72], True),
    ],
)
def test_layout_type_and_batch_size_come_from_the_file(dtype, input_shape, normalized, tmp_path):
    file = onnx_files.linear(tmp_path / "t.onnx", input_shape, WEIGHTS, dtype=dtype)
    x = (PIXELS / 255 - MEAN) / STD if normalized else PIXELS
    x = np.rint(x) if "int" in dtype else x
    x = x.transpose(0, 3, 1, 2) if 3 in input_shape[1:2] else x
    expected = x.reshape(4, -1) @ WEIGHTS
    normalization = {"mean": MEAN, "std": STD} if normalized else {}
    teacher = load_onnx(file, SHAPE, **normalization)
    tolerance = (1e-2 if dtype == "float16" else 1e-5) * expected.std()
    np.testing.assert_allclose(teacher(PIXELS), expected, rtol=0, atol=tolerance)
    assert (teacher.num_classes, teacher.input_shape) == (5, SHAPE)


@pytest.mark.parametrize(
    "input_shape", [["b", "channels", "height", "width"], [None, 3, None, None], [2, 3, 9, 5]]
)
def test_images_are_resized_only_to_a_size_that_the_file_has(input_shape, tmp_path):
    weights = np.eye(3, 4, dtype=np.float32)
    file = onnx_files.pooled(tmp_path / "t.onnx", input_shape, weights)
    x = tf.image.resize(PIXELS, input_shape[2:]) if input_shape[2] == 9 else PIXELS
    expected = np.mean(x / 255, axis=(1, 2)) @ weights
    teacher = load_onnx(file, SHAPE, mean=0, std=1, outputs="logits")
    np.testing.assert_allclose(teacher(PIXELS), expected, atol=1e-5)


def test_probabilities_become_logits_unless_the_caller_knows_better(tmp_path):
    expected = PIXELS.reshape(4, -1) @ (WEIGHTS / 50)
    path = tmp_path / "t.onnx"
    # As scikit-learn's converter names and orders them.
    file = onnx_files.linear(
        path, [None, *SHAPE], WEIGHTS / 50, returns="Softmax", outputs=("probabilities", "label")
    )
    logits = load_onnx(file, SHAPE)(PIXELS)
    np.testing.assert_allclose(logits, log_softmax(expected), atol=1e-5)
    as_they_are = load_onnx(file, SHAPE, outputs="logits")(PIXELS)
    np.testing.assert_allclose(as_they_are, np.exp(logits), atol=1e-6)
    file = onnx_files.linear(path, [None, *SHAPE], WEIGHTS / 50, returns="Sigmoid")
    with pytest.raises(InputError, match=r"don't add up to 1; say whether .*--teacher_outputs"):
        load_onnx(file, SHAPE)


def test_the_fingerprint_covers_weights_beside_the_file_and_the_normalization(tmp_path):
    path = tmp_path / "t.onnx"
    onnx_files.linear(path, [None, *SHAPE], WEIGHTS)
    onnx_files.move_weights(path, "t.onnx.data")
    prints = {load_onnx(path, SHAPE).fingerprint() for _ in range(2)}
    assert len(prints) == 1
    prints |= {load_onnx(path, SHAPE, mean=m, std=1).fingerprint() for m in (0.1, MEAN)}
    (tmp_path / "t.onnx.data").write_bytes((WEIGHTS * 2).tobytes())
    np.testing.assert_allclose(load_onnx(path, SHAPE)(PIXELS), PIXELS.reshape(4, -1) @ WEIGHTS * 2,
                               rtol=1e-4)  # fmt: skip
    prints.add(load_onnx(path, SHAPE).fingerprint())
    assert len(prints) == 4


def test_an_onnx_teacher_works_with_xla_around_it_and_in_ensembles(tmp_path):
    file = onnx_files.linear(tmp_path / "t.onnx", [None, *SHAPE], WEIGHTS)
    teacher = load_onnx(file, SHAPE)
    other = networks.convolutional_classifier(5, (8, 8, 3))
    with pytest.raises(InputError, match="must take the same images"):
        FrozenTeacher([teacher, other])
    other = networks.small_convolutional_classifier(5, SHAPE)
    both = FrozenTeacher([teacher, FrozenTeacher(other)])
    members = [teacher(PIXELS), other(PIXELS, training=False)]
    mean = np.mean([np.exp(log_softmax(each)) for each in members], axis=0)
    np.testing.assert_allclose(np.exp(log_softmax(both(PIXELS))), mean, atol=1e-5)
    assert not both.supports_jit


REFUSED = {
    "not a model": (lambda file: file.write_text("hello"), {}, "can't load .* export it again"),
    "a truncated model": (
        lambda file: file.write_bytes(file.read_bytes()[:200]), {}, "can't load"),
    "data in another folder": (
        lambda file: onnx_files.move_weights(file, "../outside.bin"), {}, "can't load .*External"),
    "data of the wrong size": (
        lambda file: onnx_files.move_weights(file, "data.bin", b"1234"), {}, "can't load"),
    "two inputs": ({"inputs": 2}, {}, r"has 2 inputs \(x0, x1\), expected one"),
    "two outputs": ({"outputs": ("a", "b")}, {}, r"has 2 outputs \(b, a\)"),
    "classes, no logits": ({"outputs": ("label",), "returns": "ArgMax"}, {}, "is a tensor.int64"),
    "no classes": ({"weights": WEIGHTS[:, :1]}, {}, r"outputs of shape \(any, 1\)"),
    "no classifier": ({"weights": WEIGHTS[None]}, {}, r"outputs of shape \(any, 4, 5\)"),
    "not images": (
        {"input_shape": [None, 7], "weights": WEIGHTS[:7]}, {}, r"\(any, 7\).*\(4, 6, 3\)"),
    "other channels": ({"input_shape": [None, 6, 12, 1]}, {}, r"\(any, 6, 12, 1\)"),
    "another size, found when run": (
        {"input_shape": [None] * 4, "weights": WEIGHTS[:30]}, {}, "can't be run on images"),
    "no normalization": ({"input_shape": [None, 3, 4, 6]}, {}, "--teacher_normalization"),
    "a normalization of integers": ({"dtype": "uint8"}, {"mean": 0}, "normalizes them itself"),
    "a normalization of two channels": ({}, {"std": (1, 2)}, "for 2 channels"),
    "NaNs": ({"returns": "Sqrt"}, {}, "NaNs or infinities"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_file_is_refused_in_one_line(case, tmp_path):
    change, arguments, message = REFUSED[case]
    path = tmp_path / "folder" / "t.onnx"
    path.parent.mkdir()
    written = {"input_shape": [None, *SHAPE], "weights": WEIGHTS}
    onnx_files.linear(path, **(written | change if isinstance(change, dict) else written))
    if not isinstance(change, dict):
        change(path)
    with pytest.raises(InputError, match=message) as caught:
        load_onnx(path, SHAPE, **arguments)
    assert "\n" not in str(caught.value)


def test_class_names_select_and_order_the_outputs(tmp_path, capsys):
    file = onnx_files.linear(tmp_path / "t.onnx", [None, 3, 4, 6], WEIGHTS)
    (tmp_path / "names.txt").write_text("wasp\ncat\nant\nsnake\nbee\n")
    split = data.Split(PIXELS.astype(np.uint8), np.arange(4) % 3)
    classes = ("ant", "bee", "cat")
    dataset = data.Dataset("made", "1.0.0", classes, MEAN, STD, False, split, split)
    source = TeacherSource(file, None, "none", str(tmp_path / "names.txt"))
    logits = load_teachers(dataset, [source])[0](PIXELS)
    expected = (PIXELS / 255).transpose(0, 3, 1, 2).reshape(4, -1) @ WEIGHTS
    np.testing.assert_allclose(logits, expected[:, [2, 4, 1]], rtol=0, atol=1e-4)
    assert "run by ONNX Runtime, normalization none" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"has 5 classes and the data 3; .*--teacher_classes"):
        load_teachers(dataset, [TeacherSource(file, None, "none")])
    with pytest.raises(InputError, match="own precision"):
        load_teachers(dataset, [source], dtype="float16")


def test_an_export_of_a_keras_model_records_the_same_logits(tmp_path):
    """Its file returns probabilities, so the logits are compared without their mean."""
    digits = data.load("digits")
    model = networks.trained_looking(models.build("resnet8", (8, 8, 1), 10, mean=0.3, std=0.2))
    experiment.export(model, digits, ["onnx"], tmp_path)
    exported = load_onnx(tmp_path / "student.onnx", digits.image_shape)
    batches = data.pipeline(digits, "train", batch_size=32, data_seed=0)
    recordings = [
        record_teacher(
            tmp_path / f"{number}.replay", teacher, batches, Mixup(), 0, 3, dtype="float32"
        )
        for number, teacher in enumerate([exported, model])
    ]
    given, expected = (
        log_softmax(np.memmap(each.path, "float32", "r", each.path.stat().st_size - 3 * 32 * 40,
                              (96, 10)))
        for each in recordings
    )  # fmt: skip
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-3 * expected.std())
