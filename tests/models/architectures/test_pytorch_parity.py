"""Every architecture computes what its PyTorch counterpart computes."""

import json

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file
from zoo_models import CIFAR100, ONE_OF_EACH, deviation, pixels, trainable, trained

import models
from stkd_keras import FrozenTeacher

REFERENCES = ["MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet20", "resnet8x4", "vgg8", "wrn_16_2"]
# EfficientNet-Lite's published weights are compared in test_efficientnet_lite.py.
OTHERS = [name for name in models.available() if name not in ONE_OF_EACH and "lite" not in name]
OTHERS += ["resnet20:shortcut=projection", "resnet18", "mobilenet_v2:width=1.4"]
SMALL = ("resnet20", "resnet8x4", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2")


@pytest.fixture(scope="module")
def torch_parity():
    """The helpers that need PyTorch."""
    pytest.importorskip("torch")
    import torch_parity

    return torch_parity


def load(name, file, size=32):
    return models.load(
        name, input_shape=(size, size, 3), num_classes=10, weights=file, **CIFAR100
    )  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_repdistillers_checkpoints_give_its_embedding_and_logits(name, shared):
    file = shared / "reference" / "models" / f"{name}.safetensors"
    expected = np.load(file.with_name(f"{name}-expected.npz"))
    images = expected["images"].astype("float32")
    model = models.load(
        name, input_shape=(32, 32, 3), num_classes=100, weights=file, **CIFAR100
    )  # fmt: skip
    found = models.features(model, ["embedding", "logits"])(images, training=False)
    for feature, value in found.items():
        assert deviation(value, expected[feature]) <= 1e-4
    assert deviation(FrozenTeacher(model)(images), expected["logits"]) <= 1e-4


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_trained_resnet56_gives_pytorchs_logits(ending, shared):
    if ending == ".pth":
        pytest.importorskip("torch")
    model = models.load(
        "resnet56", input_shape=(32, 32, 3), num_classes=10,
        weights=shared / "weights" / f"resnet56-cifar10{ending}",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    expected = np.load(shared / "weights" / "resnet56-cifar10-expected.npz")
    logits = model(expected["images"].astype("float32"), training=False)
    assert np.abs(logits - expected["logits"]).max() <= 1e-3


@pytest.mark.parametrize("names", [SMALL, pytest.param(None, marks=pytest.mark.slow)])
def test_parameter_counts_are_the_published_ones(names, shared):
    published = json.loads((shared / "reference" / "model_parameters.json").read_text())
    projection = published["classes_100_projection_shortcuts"]
    identity = published["classes_10_parameter_free_shortcuts"]
    for name in names or projection:
        is_small_resnet = name.startswith("resnet") and not name.endswith("x4")
        options = {"shortcut": "projection"} if is_small_resnet else {}
        assert trainable(models.build(name, (32, 32, 3), 100, **options)) == projection[name]
        if name in identity:
            assert trainable(models.build(name, (32, 32, 3), 10)) == identity[name]


@pytest.mark.parametrize(
    "name", [*ONE_OF_EACH, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
def test_every_feature_is_that_of_the_pytorch_network(name, torch_parity, tmp_path):
    network = torch_parity.randomized(name)
    torch_parity.save(network, tmp_path / "n.safetensors")
    images = pixels()
    expected = torch_parity.features(network, images)
    # All options but the stem follow from the file.
    model = load(name if "stem" in name else name.split(":")[0], tmp_path / "n.safetensors")
    found = models.features(model, list(expected))(images, training=False)
    for feature, value in expected.items():
        assert found[feature].shape == value.shape
        assert deviation(found[feature], value) <= 1e-4, feature
    teacher = FrozenTeacher(model)
    assert deviation(teacher(images), expected["logits"]) <= 1e-4
    norms = sum(type(layer) is keras.layers.BatchNormalization for layer in model.layers)
    assert teacher.num_folded == (norms // 2 if name.startswith("wrn") else norms)


@pytest.mark.parametrize("name", ["vgg8", "shufflenet_v2"])
def test_images_of_64_pixels_give_pytorchs_logits(name, torch_parity, tmp_path):
    network = torch_parity.randomized(name)
    torch_parity.save(network, tmp_path / "n.safetensors")
    images = pixels(2, (64, 64, 3))
    expected = torch_parity.features(network, images)["logits"]
    model = load(name, tmp_path / "n.safetensors", size=64)
    assert deviation(model(images, training=False), expected) <= 1e-4


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "shufflenet_v1"])
def test_the_pytorch_module_loads_a_saved_student(name, torch_parity, tmp_path):
    student = trained(models.build(name, (32, 32, 3), 10, **CIFAR100))
    models.save_pytorch(student, tmp_path / "s.safetensors")
    network = torch_parity.randomized(name)
    torch_parity.load(network, load_file(tmp_path / "s.safetensors"))
    logits = student(pixels(), training=False).numpy()
    assert deviation(torch_parity.features(network, pixels())["logits"], logits) <= 1e-4
