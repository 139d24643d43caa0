"""State dicts load into the zoo's models by name, or are refused."""

import keras
import networks
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from state_dicts import random_state

import models
from stkd_keras.errors import InputError

SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}


@pytest.fixture(scope="module")
def model():
    return models.build("resnet8", **SMALL)


@pytest.fixture
def state(model):
    return random_state(model)


def refusal(function, *arguments, **settings):
    with pytest.raises(InputError) as caught:
        function(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_load(model, state, tmp_path):
    """The refusal of a state dict, which leaves the model unchanged."""
    path = tmp_path / "m.safetensors"
    save_file(state, path)
    before = model.get_weights()
    message = refusal(models.load_pytorch, model, path)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert str(path) in message
    return message


def test_every_tensor_arrives_in_keras_layout(model, state, tmp_path):
    save_file(state, tmp_path / "m.safetensors")
    assert models.load_pytorch(model, tmp_path / "m.safetensors") is model
    kernel = state["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.get_layer("layer2_0_conv1").kernel, kernel)
    np.testing.assert_array_equal(model.get_layer("linear").kernel, state["linear.weight"].T)
    norm = model.get_layer("layer3_0_bn2")
    for variable, name in (
        (norm.gamma, "weight"),
        (norm.beta, "bias"),
        (norm.moving_mean, "running_mean"),
        (norm.moving_variance, "running_var"),
    ):
        np.testing.assert_array_equal(variable, state[f"layer3.0.bn2.{name}"])


@pytest.mark.parametrize(
    ("prefix", "head", "shortcut"), [("", "linear", "shortcut"), ("module.", "fc", "downsample")]
)
def test_tensor_names_of_both_implementations_load(prefix, head, shortcut, tmp_path):
    model = models.build("resnet8", **SMALL, shortcut="projection")
    state = random_state(model)
    renamed = {
        prefix + name.replace("fc", head).replace("downsample", shortcut): tensor
        for name, tensor in state.items()
    }
    renamed[prefix + "bn1.num_batches_tracked"] = np.array(7)
    save_file(renamed, tmp_path / "m.safetensors")
    models.load_pytorch(model, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(model.get_layer("fc").kernel, state["fc.weight"].T)
    projection = state["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.get_layer("layer2_0_downsample_0").kernel, projection)


@pytest.mark.parametrize("name", ["vgg8", "shufflenet_v1"])
def test_a_saved_student_loads_bit_for_bit(name, tmp_path):
    settings = {"input_shape": (32, 32, 3), "num_classes": 10}
    student = networks.trained_looking(models.build(name, **settings))
    models.save_pytorch(student, tmp_path / "s.safetensors")
    again = models.load(name, **settings, weights=tmp_path / "s.safetensors")
    for before, after in zip(student.weights, again.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    (tmp_path / "other").touch()
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1, "the usual permissions"


def test_a_saved_student_says_how_pixels_are_normalized(tmp_path):
    from safetensors import safe_open

    model = models.build("resnet8", **SMALL, mean=0.25, std=0.5)
    models.save_pytorch(model, tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "mean": "[0.25]", "std": "[0.5]"}


def test_missing_tensors_are_named(model, state, tmp_path):
    del state["linear.bias"]
    assert "1 missing from the file: linear.bias" in refused_load(model, state, tmp_path)


def test_unexpected_tensors_are_named(model, state, tmp_path):
    state["layer1.1.conv1.weight"] = state["layer1.0.conv1.weight"]
    message = refused_load(model, state, tmp_path)
    assert "1 unexpected in the file: layer1.1.conv1.weight" in message


def test_tensors_given_twice_are_named(model, state, tmp_path):
    twice = {**state, "fc.bias": state["linear.bias"]}
    message = refused_load(model, twice, tmp_path)
    assert "fc.bias (a second linear.bias)" in message or "(a second fc.bias)" in message
    twice = {**state, "module.linear.bias": state["linear.bias"]}
    assert "linear.bias twice" in refused_load(model, twice, tmp_path)


def test_other_shapes_are_named_in_pytorchs_layout(model, state, tmp_path):
    state["linear.weight"] = state["linear.weight"][:7]
    assert refused_load(model, state, tmp_path).endswith(
        "build the model with the file's num_classes"
    )
    state["conv1.weight"] = np.zeros((16, 3, 3, 3), "float32")
    message = refused_load(model, state, tmp_path)
    assert "linear.weight (file (7, 64), model (10, 64))" in message
    assert "conv1.weight (file (16, 3, 3, 3), model (16, 1, 3, 3))" in message
    assert message.endswith("build the model with the file's architecture, options and num_classes")


def test_a_checkpoint_of_another_architecture_is_refused_in_one_short_line(state, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(state, path)
    message = refusal(models.load, "resnet14", **SMALL, weights=path)
    assert "30 missing from the file" in message
    assert "and 27 more" in message
    message = refusal(models.load, "resnet8", **SMALL, weights=path, shortcut="projection")
    assert "10 missing from the file: layer2.0.downsample.0.weight" in message
    assert message.endswith('build the model with shortcut="identity"')


def test_long_names_in_a_file_are_shortened(model, state, tmp_path):
    state = {f"{name}\n{'x' * 5000}": tensor for name, tensor in state.items()}
    assert len(refused_load(model, state, tmp_path)) < 2000


def test_models_with_other_layers_are_refused(state, tmp_path):
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.LayerNormalization()(inputs), name="mine")
    assert "mine has weights" in refusal(models.save_pytorch, model, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("tensor", "change", "named"),
    [
        ("linear.weight", lambda x: x.astype("complex64"), "integers or complex numbers"),
        ("linear.weight", lambda x: x.astype("int32"), "integers or complex numbers"),
        ("layer2.0.bn2.running_mean", lambda x: x * np.float32("nan"), "NaNs or infinities"),
        ("conv1.weight", lambda x: x + np.float32("inf"), "NaNs or infinities"),
        ("bn1.running_var", lambda x: x - 9, "negative numbers"),
    ],
)
def test_values_that_no_training_produces_are_refused(
    tensor, change, named, model, state, tmp_path
):
    state[tensor] = change(state[tensor])
    assert f"{named} in {tensor}" in refused_load(model, state, tmp_path)


def test_half_precision_checkpoints_load(model, state, tmp_path):
    save_file({name: x.astype("float16") for name, x in state.items()}, tmp_path / "m.safetensors")
    models.load_pytorch(model, tmp_path / "m.safetensors")
    np.testing.assert_allclose(
        model.get_layer("linear").kernel, state["linear.weight"].T, rtol=2**-11
    )


def test_a_path_that_cannot_be_written_is_refused(model, tmp_path):
    assert "can't write" in refusal(models.save_pytorch, model, tmp_path / "no" / "m.safetensors")
    assert ".safetensors" in refusal(models.save_pytorch, model, tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


def test_saving_and_loading_are_inverse(model, state, tmp_path):
    save_file(state, tmp_path / "m.safetensors")
    models.save_pytorch(
        models.load_pytorch(model, tmp_path / "m.safetensors"), tmp_path / "n.safetensors"
    )
    saved = load_file(tmp_path / "n.safetensors")
    assert saved.keys() == state.keys()
    assert all(np.array_equal(saved[name], state[name]) for name in state)
