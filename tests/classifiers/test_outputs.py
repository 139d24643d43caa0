"""Logits are found before any final softmax, and another last activation is refused."""

import dataclasses
import warnings

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from stkd_keras import FrozenTeacher, InputError, SimilarityTransferDistiller
from stkd_keras.classifiers.outputs import as_logits, logits_function


def softmax_dense(x):
    return layers.Dense(5, activation="softmax")(x)


def softmax_nested(x):
    inner_in = keras.Input((x.shape[-1],))
    return keras.Model(inner_in, layers.Softmax()(layers.Dense(5)(inner_in)))(x)


HEADS = {
    "linear": (lambda x: layers.Dense(5)(x), "logits"),
    "dense softmax": (softmax_dense, "probabilities"),
    "softmax layer": (lambda x: layers.Softmax()(layers.Dense(5)(x)), "probabilities"),
    "activation layer": (
        lambda x: layers.Activation("softmax")(layers.Dense(5)(x)),
        "probabilities",
    ),
    "softmax operation": (lambda x: keras.ops.softmax(layers.Dense(5)(x)), "probabilities"),
    "nested softmax": (softmax_nested, "probabilities"),
    "softmax, reshaped": (lambda x: layers.Reshape((5,))(softmax_dense(x)), "probabilities"),
    "linear, dropout": (lambda x: layers.Dropout(0.5)(layers.Dense(5)(x)), "logits"),
    "log-softmax": (lambda x: layers.Dense(5, activation="log_softmax")(x), "logits"),
}


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_found_for_every_known_last_layer(name):
    head, kind = HEADS[name]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(layers.Dense(6, activation="relu")(inputs)))
    x, _ = networks.vectors()
    outputs = model(x, training=False).numpy()
    logits = FrozenTeacher(model)(x).numpy()
    if kind == "logits":
        np.testing.assert_allclose(logits, outputs, atol=1e-5)
    else:
        np.testing.assert_allclose(tf.nn.softmax(logits), outputs, atol=1e-6)
        # A removed softmax leaves logits that aren't normalized.
        assert np.abs(np.exp(logits).sum(axis=1) - 1).max() > 1e-3
    np.testing.assert_allclose(model(x, training=False), outputs)


def test_logits_of_a_removed_softmax_keep_what_probabilities_lose():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, activation="softmax")])
    model.layers[-1].set_weights([np.eye(2, dtype="float32"), np.zeros(2, "float32")])
    logits = FrozenTeacher(model)(np.array([[200.0, 0.0]], "float32"))
    np.testing.assert_allclose(logits, [[200.0, 0.0]])


@pytest.mark.parametrize(
    ("head", "advice"),
    [
        (lambda x: layers.ReLU()(layers.Dense(5)(x)), 'outputs="logits" or "probabilities"'),
        (lambda x: layers.Average()([softmax_dense(x), softmax_dense(x)]), 'outputs="logits" or'),
        (lambda x: layers.Dense(5, activation="sigmoid")(x), "in a linear layer or a softmax"),
        (lambda x: layers.Dense(1)(x), 'single linear unit .* second class, set outputs="logits"'),
        (lambda x: layers.Dense(1, activation="tanh")(x), "single tanh unit"),
        (lambda x: layers.Dense(1, activation="softmax")(x), "always 1: use a sigmoid"),
    ],
)
def test_another_last_activation_is_refused_with_advice_that_fits(head, advice):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(inputs))
    with pytest.raises(InputError, match=advice) as caught:
        FrozenTeacher(model)
    assert "\n" not in str(caught.value)
    x, _ = networks.vectors()
    logits, outputs = FrozenTeacher(model, outputs="logits")(x), model(x).numpy()
    if outputs.shape[1] == 1:
        outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=1)
    np.testing.assert_allclose(logits, outputs, rtol=1e-5)


SIGMOIDS = {
    "dense": lambda x: layers.Dense(1, activation="sigmoid", name="unit")(x),
    "activation": lambda x: layers.Activation("sigmoid")(layers.Dense(1, name="unit")(x)),
    "operation": lambda x: keras.ops.sigmoid(layers.Dense(1, name="unit")(x)),
    "in a dict": lambda x: {"p": layers.Dense(1, activation="sigmoid", name="unit")(x)},
}


@pytest.mark.parametrize("name", SIGMOIDS)
def test_a_sigmoid_unit_is_two_classes_even_where_its_probability_is_rounded_to_1(name, tmp_path):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, SIGMOIDS[name](inputs))
    model.get_layer("unit").set_weights([np.float32([[2.0]]), np.float32([-1.0])])
    x = np.float32([[-20.0], [0.5], [3.0], [25.0]])
    expected = np.concatenate([np.zeros_like(x), 2 * x - 1], axis=1)
    for outputs in ("auto", "probabilities"):
        teacher = FrozenTeacher(model, outputs)
        assert teacher.num_classes == 2
        np.testing.assert_allclose(teacher(x), expected, rtol=1e-5)
        again = FrozenTeacher.from_config(teacher.get_config())
        teacher.save_weights(tmp_path)
        again.load_weights(tmp_path)
        np.testing.assert_allclose(again(x), expected, rtol=1e-5)
    np.testing.assert_allclose(logits_function(model)(x), expected, rtol=1e-5)


def test_a_probability_without_its_logit_is_two_classes():
    p = np.float32([[0.0], [0.1], [0.5], [1.0]])
    logits = as_logits(tf.constant(p), "probabilities").numpy()
    np.testing.assert_allclose(tf.nn.softmax(logits)[:, 1:], p, atol=1e-6)
    assert np.isfinite(logits).all()


class Returns(keras.Model):
    """A subclassed model that returns its logits in any structure."""

    def __init__(self, structure, classes=5):
        super().__init__()
        self.dense, self.structure = layers.Dense(classes), structure

    def call(self, x, training=None):
        return self.structure(self.dense(x))


@dataclasses.dataclass
class Output:
    """Like the outputs of other libraries."""

    logits: tf.Tensor


def functional(structure):
    inputs = keras.Input((4,))
    return keras.Model(inputs, structure(layers.Dense(5)(inputs)))


def subclassed(structure):
    model = Returns(structure)
    model(np.zeros((1, 4), "float32"))
    return model


@pytest.mark.parametrize("make_model", [functional, subclassed])
@pytest.mark.parametrize(
    "structure",
    [
        lambda z: {"logits": z},
        lambda z: {"features": z + 1, "logits": z},
        lambda z: {"scores": z},
        lambda z: [z],
    ],
)
def test_the_only_output_or_the_one_called_logits_is_taken(make_model, structure):
    model = make_model(structure)
    x, y = networks.vectors(16)
    expected = x @ model.weights[0].numpy()
    teacher = FrozenTeacher(model, outputs="logits")
    np.testing.assert_allclose(teacher(x), expected, atol=1e-5)
    distiller = SimilarityTransferDistiller(model, teacher, student_outputs="logits")
    distiller.compile("sgd", metrics=["accuracy"])
    scores = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(scores["accuracy"], (expected.argmax(axis=1) == y).mean())
    distiller.fit(x, y, verbose=0)
    assert np.abs(model.weights[0].numpy() - teacher._members[0]._weights[0].numpy()).max() > 0


def two_inputs():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, layers.Dense(5)(layers.Add()(inputs)))


class TwoInputs(keras.Model):
    """Takes a list, or two arguments."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(5)

    def call(self, one, other=None):
        one, other = one if other is None else (one, other)
        return self.dense(one + other)


def called(model, *arguments):
    model(*arguments)
    return model


ZEROS = np.zeros((1, 4), "float32")
NOT_ONE = {
    "two outputs": (lambda: functional(lambda z: [z, z]), "returns 2 outputs, but must"),
    "a tuple": (lambda: subclassed(lambda z: (z, z)), "returns 2 outputs, but must"),
    "a dict": (lambda: subclassed(lambda z: {"a": z, "b": z}), "returns 2 outputs: a, b, but"),
    "an object": (lambda: subclassed(lambda z: Output(z)), "returns a Output"),
    "two inputs": (two_inputs, "takes 2 inputs"),
    "a list": (lambda: called(TwoInputs(), [ZEROS, ZEROS]), "takes 2 inputs"),
    "two arguments": (
        lambda: called(TwoInputs(), ZEROS, ZEROS),
        r"can't be called on a batch of shape \(1, 4\): not enough values",
    ),
}


@pytest.mark.parametrize("name", NOT_ONE)
def test_several_inputs_or_outputs_are_refused_in_one_line(name):
    make_model, named = NOT_ONE[name]
    for role, use in (
        ("teacher", lambda model: FrozenTeacher(model, outputs="logits")),
        ("student", lambda model: SimilarityTransferDistiller(model, soft_weight=0.0)),
    ):
        with pytest.raises(InputError, match=f"the {role} .* {named}") as caught:
            use(make_model())
        assert "\n" not in str(caught.value)


class EagerOnly(keras.Model):
    """Can only be called on a batch of numbers."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(5)

    def call(self, x):
        return self.dense(x) if float(keras.ops.sum(x)) < 1e9 else self.dense(-x)


@pytest.mark.parametrize("has_teacher", [True, False])
def test_a_student_that_was_called_on_a_batch_has_a_known_number_of_classes(has_teacher):
    student, teacher = EagerOnly(), networks.dense_classifier() if has_teacher else None
    student(np.zeros((1, 4), "float32"))
    weight = 0.5 if has_teacher else 0.0
    distiller = SimilarityTransferDistiller(
        student, teacher, soft_weight=weight, student_outputs="logits"
    )
    distiller.compile("sgd", run_eagerly=True)
    assert np.isfinite(distiller.fit(*networks.vectors(16), verbose=0).history["loss"][0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_visible_softmax_is_removed_though_probabilities_are_announced(dtype):
    model = networks.dense_classifier(softmax=True)
    model.layers[-1].kernel.assign(30 * model.layers[-1].kernel)
    x, _ = networks.vectors()
    exact = FrozenTeacher(model)(x).numpy()
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    try:
        half = networks.dense_classifier(softmax=True)
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(model.get_weights())
    logits = FrozenTeacher(half, outputs="probabilities")(x).numpy()
    assert np.abs(logits - exact).max() < 0.02 * np.ptp(exact)


def test_rounded_probabilities_are_warned_of():
    inputs = keras.Input((4,))
    softmaxes = [layers.Dense(5, "softmax", dtype="mixed_float16")(inputs) for _ in range(2)]
    average = keras.Model(inputs, layers.Average(dtype="float16")(softmaxes))
    with pytest.warns(UserWarning, match="the teacher .* returns probabilities in float16"):
        FrozenTeacher(average, outputs="probabilities")
    student = keras.Model(inputs, softmaxes[0])
    with pytest.warns(UserWarning, match="the student .* returns probabilities in float16"):
        SimilarityTransferDistiller(student, soft_weight=0.0)
    exact = keras.Model(inputs, layers.Activation("softmax", dtype="float32")(softmaxes[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SimilarityTransferDistiller(exact, soft_weight=0.0)


def test_a_squashed_layer_before_pooling_is_refused():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(5, 3, activation="sigmoid")(inputs)
    with pytest.raises(InputError, match="GlobalAveragePooling2D"):
        FrozenTeacher(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
