"""Every architecture is the published one: its weights, its features, its answers, its cost."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

import models
from stkd_keras import FrozenTeacher, InputError, SimilarityTransferDistiller

CIFAR100 = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
IMAGES = {"input_shape": (32, 32, 3), "num_classes": 100}
REFERENCES = [
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "resnet20",
    "resnet8x4",
    "vgg8",
    "wrn_16_2",
]
# One of each family, with what its constructor may be given.
ONE_OF_EACH = ["resnet8", "resnet8:shortcut=projection", "resnet8x4", "resnet18:stem=64",
               "wrn_16_1", "vgg8", "mobilenet_v2", "mobilenet_v2:width=0.25", "shufflenet_v1",
               "shufflenet_v2"]  # fmt: skip
SEVERAL_OF_EACH = [
    *ONE_OF_EACH, "resnet20", "resnet20:shortcut=projection", "wrn_16_2", "wrn_40_1", "vgg11",
    "resnet18", "mobilenet_v2:width=1.4",
]  # fmt: skip
LARGE = [name for name in models.available() if name not in SEVERAL_OF_EACH]


def deviation(actual, expected):
    """The largest difference, in largest deviations of what is expected from its mean."""
    spread = np.abs(expected - expected.mean(axis=0)).max()
    return np.abs(np.asarray(actual) - expected).max() / spread


def pixels(count=4, shape=(32, 32, 3), seed=0):
    """Images that differ in more than noise, in [0, 255]."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(0, 255, (count, 1, 1, shape[-1]))
    return np.clip(colours + rng.normal(0, 60, (count, *shape)), 0, 255).astype("float32")


def trained(model):
    """Gives batch normalisation parameters and statistics as after training on such images."""
    rng = np.random.default_rng(0)
    norms = [x for x in model.layers if type(x) is keras.layers.BatchNormalization]
    for norm in norms:
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.3, norm.beta.shape))
        norm.momentum = 0.0
    model(pixels(16, model.input_shape[1:], seed=1), training=True)
    for norm in norms:
        norm.momentum = 0.9
    return model


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def torch_name(name):
    """The name and options of tests/models/torch_networks.py."""
    name, *options = name.split(":")
    return name, dict(option.split("=") for option in options)


def torch_network(name, num_classes=10):
    pytest.importorskip("torch")
    import torch_networks

    name, options = torch_name(name)
    if "width" in options:
        options["width"] = float(options["width"])
    if name.startswith("resnet") and not name.endswith("x4") and int(name[6:]) not in (18, 34, 50):
        options = {"shortcut": "identity", **options}
    network = torch_networks.build(name, num_classes, **options).eval()
    torch_networks.randomize(network, seed=1)
    return network


def torch_features(network, images):
    """What PyTorch gives on images that are normalised by CIFAR100, with channels last."""
    import torch
    import torch_networks

    x = (images / 255 - CIFAR100["mean"]) / CIFAR100["std"]
    with torch.inference_mode():
        x = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)
        found = torch_networks.features(network, x)
    return {
        name: value.numpy().transpose(0, 2, 3, 1) if value.ndim == 4 else value.numpy()
        for name, value in found.items()
    }


def save_torch(network, path):
    save_file({name: value.numpy() for name, value in network.state_dict().items()}, path)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_benchs_checkpoints_give_pytorchs_embedding_and_logits_folded_or_not(name, shared):
    file = shared / "reference" / "models" / f"{name}.safetensors"
    expected = np.load(file.with_name(f"{name}-expected.npz"))
    images = expected["images"].astype("float32")
    model = models.load(name, **IMAGES, weights=file, **CIFAR100)
    answers = models.features(model, ["embedding", "logits"])(images, training=False)
    for feature, answer in answers.items():
        assert deviation(answer, expected[feature]) <= 1e-4
    assert deviation(FrozenTeacher(model)(images), expected["logits"]) <= 1e-4


def test_parameters_are_as_many_as_published(shared):
    published = json.loads((shared / "reference" / "model_parameters.json").read_text())
    counts = {}
    for name in published["classes_100_projection_shortcuts"]:
        is_small_resnet = name.startswith("resnet") and not name.endswith("x4")
        options = {"shortcut": "projection"} if is_small_resnet else {}
        counts[name] = trainable(models.build(name, **IMAGES, **options))
    assert counts == published["classes_100_projection_shortcuts"]
    five = published["classes_10_parameter_free_shortcuts"]
    assert {name: trainable(models.build(name, (32, 32, 3), 10)) for name in five} == five


@pytest.mark.parametrize(
    "name", [*SEVERAL_OF_EACH, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)]
)
def test_every_feature_is_that_of_the_pytorch_network_folded_or_not(name, tmp_path):
    network = torch_network(name)
    save_torch(network, tmp_path / "n.safetensors")
    images = pixels()
    expected = torch_features(network, images)
    plain = torch_name(name)[0] if "stem" not in name else name  # The rest is in the file.
    model = models.load(
        plain, input_shape=(32, 32, 3), num_classes=10, weights=tmp_path / "n.safetensors",
        **CIFAR100,
    )  # fmt: skip
    answers = models.features(model, list(expected))(images, training=False)
    assert {n: deviation(answers[n], e) for n, e in expected.items() if answers[n].shape != e.shape
            or deviation(answers[n], e) > 1e-4} == {}  # fmt: skip
    teacher = FrozenTeacher(model)
    assert deviation(teacher(images), expected["logits"]) <= 1e-4
    norms = sum(type(layer) is keras.layers.BatchNormalization for layer in model.layers)
    assert teacher.num_normalizations == norms
    assert teacher.num_folded == (norms // 2 if name.startswith("wrn") else norms)


@pytest.mark.parametrize("name", ["vgg8", "resnet18", "mobilenet_v2", "shufflenet_v2", "wrn_16_1"])
def test_images_of_64_pixels_give_what_pytorch_gives(name, tmp_path):
    network = torch_network(name)
    save_torch(network, tmp_path / "n.safetensors")
    images = pixels(2, (64, 64, 3))
    expected = torch_features(network, images)
    model = models.load(
        name, input_shape=(64, 64, 3), num_classes=10, weights=tmp_path / "n.safetensors",
        **CIFAR100,
    )  # fmt: skip
    for feature, answer in models.features(model, list(expected))(images, training=False).items():
        assert answer.shape == expected[feature].shape
        assert deviation(answer, expected[feature]) <= 1e-4


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_saved_student_comes_back_bit_for_bit(name, tmp_path):
    student = trained(models.build(name, (32, 32, 3), 10, **CIFAR100))
    models.save_pytorch(student, tmp_path / "s.safetensors")
    again = models.load(
        name, input_shape=(32, 32, 3), num_classes=10, weights=tmp_path / "s.safetensors",
        **CIFAR100,
    )  # fmt: skip
    for before, after in zip(student.weights, again.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(student(pixels()), again(pixels()))
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    (tmp_path / "other").touch()
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1, "readable by whoever may read other files"


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_pytorchs_module_loads_a_saved_student_strictly_and_answers_alike(name, tmp_path):
    torch = pytest.importorskip("torch")
    student = trained(models.build(name, (32, 32, 3), 10, **CIFAR100))
    student.save(tmp_path / "s.keras")
    models.save_pytorch(keras.saving.load_model(tmp_path / "s.keras"), tmp_path / "s.safetensors")
    state = {n: torch.tensor(t) for n, t in load_file(tmp_path / "s.safetensors").items()}
    network = torch_network(name)
    network.load_state_dict(state, strict=True)
    logits = student(pixels(), training=False).numpy()
    assert deviation(torch_features(network, pixels())["logits"], logits) <= 1e-4


def test_names_are_understood_as_the_bench_spells_them():
    for alias, name in {
        "ResNet50": "resnet50",
        "WRN-40-2": "wrn_40_2",
        "vgg13_bn": "vgg13",
        "MobileNetV2": "mobilenet_v2",
        "mobile_half": "mobilenet_v2",
        "ShuffleV1": "shufflenet_v1",
        "ShuffleV2": "shufflenet_v2",
    }.items():
        assert name in models.available()
        assert models.build(alias, (32, 32, 3), 10).name == name
    full = models.build("mobile_full", (32, 32, 3), 10)
    assert trainable(full) == trainable(models.build("mobilenet_v2:width=1", (32, 32, 3), 10))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_features_have_names_and_shapes_that_all_families_share(name):
    model = models.build(name, (32, 32, 3), 10)
    stages = {"resnet18": 4, "vgg8": 4, "mobilenet_v2": 4}.get(torch_name(name)[0], 3)
    names = [f"stage{number}{ending}" for number in range(1, stages + 1)
             for ending in ("", "_preactivation")]  # fmt: skip
    found = models.features(model, ["stem", *names, "embedding", "logits"])(pixels(2))
    assert found["embedding"].shape == (2, model.layers[-1].input.shape[-1])
    assert found["logits"].shape == (2, 10)
    for number in range(1, stages + 1):
        assert found[f"stage{number}"].shape == found[f"stage{number}_preactivation"].shape
    with pytest.raises(InputError, match=r"nearest known.*stage") as caught:
        models.features(model, ["stage9"])
    assert "\n" not in str(caught.value)


def test_the_features_of_a_loaded_file_are_found_by_the_same_names(tmp_path):
    model = models.build("wrn_16_1", (32, 32, 3), 10)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    names = ["stem", "stage2_preactivation", "embedding", "logits"]
    mine, its = (models.features(m, names)(pixels(2)) for m in (model, loaded))
    for name in names:
        np.testing.assert_allclose(mine[name], its[name], rtol=1e-4, atol=1e-5)


def test_what_has_no_features_is_refused_in_one_line():
    model = models.build("resnet8", (32, 32, 3), 10)
    own = keras.Sequential([keras.layers.Dense(3)])
    for arguments in ((model, []), (own, ["logits"])):
        with pytest.raises(InputError) as caught:
            models.features(*arguments)
        assert "\n" not in str(caught.value)
    sequential = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    found = models.features(sequential, ["head", "logits"])(np.zeros((2, 4), "float32"))
    assert found["head"].shape == found["logits"].shape == (2, 3)


def test_what_cannot_be_folded_is_left_as_it_was():
    model = trained(models.build("wrn_16_2", (32, 32, 3), 10))
    teacher = FrozenTeacher(model)
    assert (teacher.num_folded, teacher.num_normalizations) == (6, 13)
    snapshot = teacher._members[0].snapshot
    kept = [layer for layer in model.layers if type(layer) is keras.layers.BatchNormalization
            and not layer.name.endswith("_bn2")]  # fmt: skip
    assert len(kept) == 7
    for layer in kept:
        for before, after in zip(
            layer.weights, snapshot.get_layer(layer.name).weights, strict=True
        ):
            np.testing.assert_array_equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_student_of_every_family_learns(name):
    keras.utils.set_random_seed(0)
    model = models.build(name, (16, 16, 3), 3)
    before = [weight.numpy() for weight in model.trainable_weights]
    distiller = SimilarityTransferDistiller(model, None, mixing=None, soft_weight=0, label_weight=1)
    distiller.compile(keras.optimizers.SGD(0.01))
    x, y = pixels(24, (16, 16, 3)), np.arange(24) % 3
    loss = distiller.fit(x, y, batch_size=24, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    moved = [np.abs(a - b).max() > 0 for a, b in zip(before, model.trainable_weights, strict=True)]
    assert np.mean(moved) > 0.9  # A bias before a normalisation has no gradient but by rounding.


def test_mixed_precision_reaches_every_family_and_spares_its_logits():
    for name in ("vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "wrn_16_1"):
        exact = trained(models.build(name, (32, 32, 3), 10))
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = models.build(name, (32, 32, 3), 10)
        finally:
            keras.config.set_dtype_policy("float32")
        model.set_weights(exact.get_weights())
        assert model.get_layer("stage2").compute_dtype == "bfloat16"
        assert model.output.dtype == "float32"
        answers = [np.ravel(m(pixels())) for m in (model, exact)]
        assert np.corrcoef(*answers)[0, 1] > 0.9


LOAD_IN_PLAIN_KERAS = """
import sys, keras, numpy as np
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    np.save(path + ".npy", model(np.load("pixels.npy")))
assert not {"stkd_keras", "models"} & set(sys.modules)
"""


def test_saved_models_of_every_family_load_in_a_process_that_imports_only_keras(tmp_path):
    np.save(tmp_path / "pixels.npy", pixels())
    saved = {}
    for name in ("wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"):
        saved[f"{name}.keras"] = trained(models.build(name, (32, 32, 3), 10))
        saved[f"{name}.keras"].save(tmp_path / f"{name}.keras")
    command = [sys.executable, "-c", LOAD_IN_PLAIN_KERAS, *saved]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=170)
    for file, model in saved.items():
        assert deviation(np.load(tmp_path / f"{file}.npy"), model(pixels()).numpy()) <= 1e-4


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("vgg8", {"input_shape": (4, 4, 3)}, "too small"),
        ("resnet18", {"stem": 48}, "stem is 48; expected 32 or 64"),
        ("mobilenet_v2", {"width": 0.01}, "width is 0.01"),
        ("mobilenet_v2:width=wide", {}, "width is 'wide'"),
        ("mobilenet_v2:depth=3", {}, "width="),
        ("shufflenet_v1", {"input_shape": (None, None, 3)}, "height and width as numbers"),
        ("wrn_40_3", {}, "wrn_40_"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, arguments, named):
    with pytest.raises(InputError) as caught:
        models.build(name, **{"input_shape": (32, 32, 3), "num_classes": 10, **arguments})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_family_or_number_of_classes_is_refused_by_name(tmp_path):
    file = tmp_path / "vgg8.safetensors"
    models.save_pytorch(models.build("vgg8", (32, 32, 3), 10), file)
    for name, classes, named in (
        ("resnet8", 10, "architecture"),
        ("wrn_16_1", 10, "architecture"),
        ("vgg11", 10, "architecture"),
        ("vgg8", 100, "num_classes"),
    ):
        with pytest.raises(InputError, match=named) as caught:
            models.load(name, input_shape=(32, 32, 3), num_classes=classes, weights=file)
        assert "vgg8.safetensors doesn't fit" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_with_nans_is_refused_by_the_tensors_name(tmp_path):
    model = models.build("shufflenet_v2", (32, 32, 3), 10)
    models.save_pytorch(model, tmp_path / "m.safetensors")
    for value in (np.nan, np.inf):
        state = load_file(tmp_path / "m.safetensors")
        state["layer2.3.bn2.running_var"][5] = value
        save_file(state, tmp_path / "broken.safetensors")
        before = model.get_weights()
        with pytest.raises(InputError, match=r"layer2\.3\.bn2\.running_var"):
            models.load_pytorch(model, tmp_path / "broken.safetensors")
        assert all(map(np.array_equal, before, model.get_weights()))


def test_a_compiled_teacher_of_every_family_answers_as_the_model():
    for name in ("wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"):
        model = trained(models.build(name, (32, 32, 3), 10))
        teacher = tf.function(FrozenTeacher(model))
        assert deviation(teacher(pixels()), model(pixels(), training=False).numpy()) <= 1e-4
