"""PyTorch's weights give PyTorch's logits, and what doesn't fit is refused in one line."""

import argparse
import pickle
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import models
from stkd_keras.errors import InputError

CIFAR = {"input_shape": (32, 32, 3), "num_classes": 10}
SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR100 = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}


def _state(model):
    """A state dict for a ResNet of the zoo, with random values, in PyTorch's names and layouts."""
    rng = np.random.default_rng(0)
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
    names |= {"moving_variance": "running_var", "kernel": "weight"}
    state = {}
    for layer in model.layers:
        module = layer.name.replace("_", ".")
        for weight in layer.weights:
            shape = weight.shape if len(weight.shape) < 4 else np.array(weight.shape)[[3, 2, 0, 1]]
            if len(weight.shape) == 2:
                shape = weight.shape[::-1]
            name = names.get(weight.name, weight.name)
            state[f"{module}.{name}"] = rng.uniform(0.5, 1.5, shape).astype("float32")
    return state


@pytest.fixture
def model():
    return models.build("resnet8", **SMALL)


@pytest.fixture
def state(model):
    return _state(model)


def _refusal(function, *arguments, **settings):
    with pytest.raises(InputError) as caught:
        function(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _refused_load(model, state, path):
    """The refusal of a state dict; the model has to be as it was."""
    save_file(state, path)
    before = model.get_weights()
    message = _refusal(models.load_pytorch, model, path)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert str(path) in message
    return message


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_trained_resnet56_gives_pytorchs_logits(ending, shared):
    if ending == ".pth":
        pytest.importorskip("torch")
    weights = shared / "weights" / f"resnet56-cifar10{ending}"
    model = models.load("resnet56", **CIFAR, weights=weights, **IMAGENET)
    expected = np.load(shared / "weights" / "resnet56-cifar10-expected.npz")
    logits = model.predict(expected["images"].astype("float32"), verbose=0)
    assert np.abs(logits - expected["logits"]).max() <= 1e-3


def test_repdistillers_resnet20_gives_pytorchs_embedding_and_logits(shared):
    folder = shared / "reference" / "models"
    # The shortcut isn't said: it's taken from the file.
    model = models.load(
        "resnet20", input_shape=(32, 32, 3), num_classes=100,
        weights=folder / "resnet20.safetensors", **CIFAR100,
    )  # fmt: skip
    expected = np.load(folder / "resnet20-expected.npz")
    both = keras.Model(model.input, [model.get_layer("embedding").output, model.output])
    for actual, name in zip(
        both(expected["images"].astype("float32")), ("embedding", "logits"), strict=True
    ):
        spread = expected[name].std(axis=0).mean()
        assert np.abs(actual - expected[name]).max() <= 1e-3 * spread


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


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("head", ["fc", "linear"])
@pytest.mark.parametrize("shortcut", ["downsample", "shortcut"])
def test_the_names_of_both_implementations_are_understood(prefix, head, shortcut, tmp_path):
    model = models.build("resnet8", **SMALL, shortcut="projection")
    state = {
        prefix + name.replace("fc", head).replace("downsample", shortcut): tensor
        for name, tensor in _state(model).items()
    }
    state[prefix + "bn1.num_batches_tracked"] = np.array(7)
    save_file(state, tmp_path / "m.safetensors")
    loaded = models.load("resnet8", **SMALL, weights=tmp_path / "m.safetensors")
    models.load_pytorch(model, tmp_path / "m.safetensors")
    assert len(loaded.weights) == len(model.weights)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


@pytest.mark.parametrize("ending", [".pth", ".pt", ".th"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_checkpoints_of_training_scripts_are_seen_through(ending, wrapper, model, state, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {f"module.{name}": torch.nn.Parameter(torch.tensor(x)) for name, x in state.items()}
    content = tensors if wrapper is None else {wrapper: tensors, "epoch": 3, "best_acc": 0.5}
    torch.save(content, tmp_path / f"m{ending}")
    models.load_pytorch(model, tmp_path / f"m{ending}")
    np.testing.assert_array_equal(model.get_layer("linear").kernel, state["linear.weight"].T)


def test_half_precision_checkpoints_load(model, state, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({k: torch.tensor(x).bfloat16() for k, x in state.items()}, tmp_path / "m.pth")
    save_file({name: x.astype("float16") for name, x in state.items()}, tmp_path / "m.safetensors")
    for ending, precision in ((".pth", 2**-8), (".safetensors", 2**-11)):
        models.load_pytorch(model, tmp_path / f"m{ending}")
        actual = model.get_layer("linear").kernel
        np.testing.assert_allclose(actual, state["linear.weight"].T, rtol=precision)


def test_missing_tensors_are_named(model, state, tmp_path):
    del state["linear.bias"]
    assert "1 missing from the file: linear.bias" in _refused_load(
        model, state, tmp_path / "m.safetensors"
    )


def test_unexpected_tensors_are_named(model, state, tmp_path):
    state["layer1.1.conv1.weight"] = state["layer1.0.conv1.weight"]
    message = _refused_load(model, state, tmp_path / "m.safetensors")
    assert "1 unexpected in the file: layer1.1.conv1.weight" in message


def test_a_tensor_given_twice_is_named(model, state, tmp_path):
    state["fc.bias"] = state["linear.bias"]
    message = _refused_load(model, state, tmp_path / "m.safetensors")
    assert "1 unexpected in the file: " in message
    assert "fc.bias (a second linear.bias)" in message or "(a second fc.bias)" in message


def test_other_shapes_are_named_in_pytorchs_layout(model, state, tmp_path):
    state["linear.weight"] = state["linear.weight"][:7]
    state["conv1.weight"] = np.zeros((16, 3, 3, 3), "float32")
    message = _refused_load(model, state, tmp_path / "m.safetensors")
    assert "linear.weight (file (7, 64), model (10, 64))" in message
    assert "conv1.weight (file (16, 3, 3, 3), model (16, 1, 3, 3))" in message


def test_a_long_list_is_cut_with_a_count(state, tmp_path):
    save_file(state, tmp_path / "m.safetensors")
    path = tmp_path / "m.safetensors"
    message = _refusal(models.load, "resnet14", **SMALL, weights=path)
    assert "30 missing from the file" in message
    assert "and 27 more" in message
    message = _refusal(models.load, "resnet8", **SMALL, weights=path, shortcut="projection")
    assert "10 missing from the file: layer2.0.downsample.0.weight" in message


def test_models_with_other_layers_are_refused(state, tmp_path):
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.LayerNormalization()(inputs), name="mine")
    save_file(state, tmp_path / "m.safetensors")
    message = _refusal(models.load_pytorch, model, tmp_path / "m.safetensors")
    assert "mine has weights" in message


def test_a_missing_or_foreign_file_is_refused(model, tmp_path):
    assert "no file" in _refusal(models.load_pytorch, model, tmp_path / "m.pth")
    assert "no file" in _refusal(models.load, "resnet8", **SMALL, weights=tmp_path / "m.pth")
    assert "no file" in _refusal(models.load, "resnet8", **SMALL, weights="m.onnx")


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".keras", ".weights.h5"])
def test_a_broken_file_is_refused(ending, tmp_path):
    if ending == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"m{ending}"
    for content in (b"", b"not weights", pickle.dumps({"fc.weight": 1})):
        path.write_bytes(content)
        assert str(path) in _refusal(models.load, "resnet8", **SMALL, weights=path)


def test_a_truncated_file_is_refused(model, state, tmp_path):
    torch = pytest.importorskip("torch")
    save_file(state, tmp_path / "m.safetensors")
    torch.save({name: torch.tensor(x) for name, x in state.items()}, tmp_path / "m.pth")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
        assert "can't read" in _refusal(models.load_pytorch, model, path)


def test_what_isnt_a_state_dict_is_refused(model, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pth"
    for content in (torch.zeros(3), [torch.zeros(3)], {"epoch": 3}, {0: torch.zeros(3)}):
        torch.save(content, path)
        assert "no state dict" in _refusal(models.load_pytorch, model, path)


def test_tensors_that_are_no_ordinary_numbers_are_refused_by_name(model, state, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(x) for name, x in state.items()}
    weight = tensors["linear.weight"]
    for odd in (
        weight.to_sparse(),
        weight.to("meta"),
        torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([weight[0], weight[1]]),
        weight.to(torch.complex64),
    ):
        torch.save({**tensors, "linear.weight": odd}, tmp_path / "m.pth")
        message = _refusal(models.load_pytorch, model, tmp_path / "m.pth")
        assert "linear.weight" in message or "can't read" in message
    for kind in ("complex64", "int32"):
        state["linear.weight"] = state["linear.weight"].astype(kind)
        message = _refused_load(model, state, tmp_path / "m.safetensors")
        assert "integers or complex numbers in linear.weight" in message


def test_a_damaged_pytorch_file_is_refused(model, state, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.tensor(x) for name, x in state.items()}, tmp_path / "m.pth")
    content = bytearray((tmp_path / "m.pth").read_bytes())
    content[len(content) // 2] ^= 0x10
    (tmp_path / "m.pth").write_bytes(content)
    assert "is damaged" in _refusal(models.load_pytorch, model, tmp_path / "m.pth")


def test_what_scripts_keep_beside_the_weights_is_no_hindrance(model, state, tmp_path):
    torch = pytest.importorskip("torch")
    content = {
        "model": {name: torch.tensor(x) for name, x in state.items()},
        "opt": argparse.Namespace(lr=0.1, model="resnet8"),
        "best_acc": np.float64(75.5),
        "epoch": np.int64(240),
        "accuracy": torch.tensor([75.5]),
    }
    torch.save(content, tmp_path / "student_best")
    models.load_pytorch(model, tmp_path / "student_best")
    np.testing.assert_array_equal(model.get_layer("linear").kernel, state["linear.weight"].T)


def test_a_name_of_a_file_stays_on_one_line(model, state, tmp_path):
    state = {f"{name}\n{'x' * 5000}": tensor for name, tensor in state.items()}
    assert len(_refused_load(model, state, tmp_path / "m.safetensors")) < 2000


def test_the_same_tensor_with_and_without_module_is_refused(model, state, tmp_path):
    state["module.linear.bias"] = state["linear.bias"]
    assert "linear.bias twice" in _refused_load(model, state, tmp_path / "m.safetensors")


def test_negative_variances_are_refused(model, state, tmp_path):
    state["bn1.running_var"] = state["bn1.running_var"] - 9
    assert "negative numbers in bn1.running_var" in _refused_load(
        model, state, tmp_path / "m.safetensors"
    )


def test_only_another_head_is_called_another_number_of_classes(model, state, tmp_path):
    state["conv1.weight"] = np.zeros((16, 3, 3, 3), "float32")
    message = _refused_load(model, state, tmp_path / "m.safetensors")
    assert message.endswith("build the model with the file's architecture, options and num_classes")


def test_a_student_that_cannot_be_written_is_one_line(model, tmp_path):
    assert "can't write" in _refusal(models.save_pytorch, model, tmp_path / "no" / "m.safetensors")
    assert ".safetensors" in _refusal(models.save_pytorch, model, tmp_path / "m.pth")


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_nans_in_keras_files_are_refused(ending, model, tmp_path):
    path = tmp_path / f"m{ending}"
    model.get_layer("conv1").kernel.assign(np.full((3, 3, 1, 16), np.nan))
    model.save(path) if ending == ".keras" else model.save_weights(path)
    message = _refusal(models.load, "resnet8", **SMALL, weights=path)
    assert "NaNs or infinities in conv1/kernel" in message


def test_options_in_the_name_win_and_a_checkpoint_that_contradicts_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    models.save_pytorch(models.build("resnet8", **SMALL, shortcut="projection"), path)
    assert 'shortcut="projection"' in _refusal(
        models.load, "resnet8:shortcut=identity", **SMALL, weights=path
    )
    models.save_pytorch(models.build("mobile_half", **CIFAR), path)
    assert "of another shape" in _refusal(models.load, "mobile_full", **CIFAR, weights=path)


@pytest.mark.parametrize("width", [1 / 16, 0.355, 0.5, 2 / 3, 0.75, 1.0, 1.33, 1.4])
def test_a_checkpoint_tells_mobilenets_width(width, tmp_path):
    model = models.build("mobilenet_v2", **CIFAR, width=width)
    models.save_pytorch(model, tmp_path / "m.safetensors")
    again = models.load("mobilenet_v2", **CIFAR, weights=tmp_path / "m.safetensors")
    assert all(map(np.array_equal, model.get_weights(), again.get_weights()))


def test_a_file_never_runs_code(model, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {}, "opt": argparse.Namespace(lr=0.1)}, tmp_path / "m.pth")
    assert "state_dict" in _refusal(models.load_pytorch, model, tmp_path / "m.pth")


def test_without_pytorch_its_files_are_refused_with_the_remedy(model, tmp_path, monkeypatch):
    (tmp_path / "m.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = _refusal(models.load_pytorch, model, tmp_path / "m.pth")
    assert "pip install torch" in message
    assert ".safetensors" in message


def test_load_without_weights_is_build():
    keras.utils.set_random_seed(3)
    built = models.build("resnet8", **SMALL, mean=0.3, std=0.2, shortcut="projection")
    keras.utils.set_random_seed(3)
    loaded = models.load("resnet8", **SMALL, mean=0.3, std=0.2, shortcut="projection")
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(loaded(x), built(x))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_keras_files_load_by_name_and_by_path(ending, model, tmp_path):
    path = tmp_path / f"m{ending}"
    model.save(path) if ending == ".keras" else model.save_weights(path)
    loaded = [models.load("resnet8", **SMALL, weights=path)]
    if ending == ".keras":
        loaded += [models.load(path), models.load(str(path), **SMALL)]
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)).astype("float32")
    for each in loaded:
        np.testing.assert_array_equal(each(x), model(x))
        assert "call" in vars(each.get_layer("bn1"))


def test_a_whole_model_is_held_against_the_data_and_brings_its_own_settings(model, tmp_path):
    path = tmp_path / "m.keras"
    model.save(path)
    assert "(None, 32, 32, 3)" in _refusal(models.load, path, input_shape=(32, 32, 3))
    assert "(None, 100)" in _refusal(models.load, path, num_classes=100)
    assert "(None, 100)" in _refusal(
        models.load, "resnet8", **SMALL | {"num_classes": 100}, weights=path
    )
    assert "mean, shortcut" in _refusal(models.load, path, mean=0.5, shortcut="identity")
    assert "std" in _refusal(models.load, "resnet8", **SMALL, weights=path, std=0.5)
    assert "weights=" in _refusal(models.load, path, weights=tmp_path / "m.pth")


def test_keras_weights_of_another_architecture_are_refused(model, tmp_path):
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    for settings in ({"num_classes": 7}, {"shortcut": "projection"}, {"input_shape": (8, 8, 3)}):
        message = _refusal(models.load, "resnet8", **{**SMALL, **settings}, weights=path)
        assert "same architecture" in message


def test_a_files_code_isnt_run_and_its_own_classes_are_named(tmp_path):
    class Unregistered(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((8, 8, 1))
    for layer, cause in ((keras.layers.Lambda(lambda x: x), "Lambda"), (Unregistered(), "Unregis")):
        path = tmp_path / "m.keras"
        keras.Model(inputs, layer(inputs)).save(path)
        assert cause in _refusal(models.load, path)


def test_what_load_lacks_is_named():
    assert "input_shape" in _refusal(models.load, "resnet8", num_classes=10)
    assert "num_classes" in _refusal(models.load, "resnet8", input_shape=(8, 8, 1))
    assert "resnet8" in _refusal(models.load, "resnt8", **SMALL)
    assert "architecture" in _refusal(models.load, "weights.pth", **SMALL)
    assert "resnet8" in _refusal(models.load, "resnt8", **SMALL, weights="m.keras")
