"""The frozen teacher returns the model's logits, and nothing changes it."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from stkd_keras import FrozenTeacher, InputError, SimilarityTransferDistiller


class Subclassed(keras.Model):
    """A user's own class, which can't be inspected or recreated."""

    def __init__(self, classes):
        super().__init__()
        self.dense, self.norm = layers.Dense(classes), layers.BatchNormalization()
        self.dropout = layers.Dropout(0.5)

    def call(self, x, training=None):
        return keras.ops.softmax(self.dropout(self.norm(self.dense(x)), training=training))


def test_a_subclassed_model_needs_outputs_and_is_a_snapshot_too():
    model = Subclassed(5)
    x, _ = networks.vectors()
    expected = model(x, training=False).numpy()
    with pytest.raises(InputError, match="can't be found"):
        FrozenTeacher(model)
    teacher = FrozenTeacher(model, outputs="probabilities")
    model.set_weights([w + 1 for w in model.get_weights()])
    np.testing.assert_allclose(tf.nn.softmax(teacher(x)), expected, atol=1e-6)
    assert teacher.num_classes == 5


@keras.saving.register_keras_serializable("test")
class Scale(layers.Layer):
    """A layer whose config omits an argument."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x


def test_a_layer_with_an_incomplete_config_keeps_its_effect():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(5)(Scale(3.0)(inputs)))
    x, _ = networks.vectors()
    np.testing.assert_allclose(FrozenTeacher(model)(x), model(x), rtol=1e-5)


def test_several_teachers_give_the_log_of_the_mean_of_their_softmaxes():
    one, other = networks.dense_classifier(), networks.dense_classifier(softmax=True)
    x, _ = networks.vectors()
    mean = (tf.nn.softmax(one(x)).numpy() + other(x).numpy()) / 2
    for teacher in (FrozenTeacher([one, other]), FrozenTeacher([FrozenTeacher(one), other])):
        np.testing.assert_allclose(teacher(x), np.log(mean), atol=1e-5)


def test_later_changes_of_the_model_have_no_effect_and_the_model_is_not_changed():
    model = networks.convolutional_classifier(softmax=True)
    x, _ = networks.images()
    before = [w.copy() for w in model.get_weights()]
    probabilities = model(x, training=False).numpy()
    teacher = FrozenTeacher(model)
    logits = teacher(x).numpy()
    for old, new in zip(before, model.get_weights(), strict=True):
        assert (old == new).all()
    np.testing.assert_array_equal(model(x, training=False), probabilities)
    assert model.trainable
    model.set_weights([w * 2 for w in before])
    np.testing.assert_array_equal(teacher(x), logits)


def test_a_teacher_may_be_compiled_with_a_custom_loss():
    model = networks.dense_classifier()
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(p))
    x, _ = networks.vectors()
    np.testing.assert_allclose(FrozenTeacher(model)(x), model(x), atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    teacher = FrozenTeacher(networks.dense_classifier())
    x = tf.constant(networks.vectors()[0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(teacher(x))
    assert tape.gradient(y, x) is None


def test_a_teacher_without_folding_is_warned_of_once(caplog):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3)(layers.ReLU()(layers.BatchNormalization()(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    with caplog.at_level("WARNING", logger="absl"):
        teacher = FrozenTeacher(model)
        teacher(np.zeros((1, 8, 8, 4), "float32"))
        teacher(np.zeros((1, 8, 8, 4), "float32"))
    assert sum("could be folded" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: "resnet", "is a str"),
        (list, "empty"),
        (lambda: keras.Sequential([layers.Dense(3)]), "no weights yet"),
        (
            lambda: [networks.dense_classifier(5), networks.dense_classifier(6)],
            "5 and 6 classes",
        ),
        (lambda: keras.Sequential([keras.Input((8, 4)), layers.Dense(3)]), "has the output shape"),
    ],
)
def test_anything_but_a_classifier_is_refused_in_one_line(make, named):
    with pytest.raises(InputError, match=named) as caught:
        FrozenTeacher(make())
    assert "\n" not in str(caught.value)


def test_an_adapted_normalization_keeps_its_effect():
    data = np.random.default_rng(0).normal(100, 30, (500, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(data)
    model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(5)])
    np.testing.assert_allclose(FrozenTeacher(model)(data), model(data), atol=1e-5)


class FunctionalOfItsOwnClass(keras.Model):
    """A functional model whose constructor takes no tensors."""

    def __init__(self):
        inputs = keras.Input((4,))
        x = layers.BatchNormalization()(layers.Dense(6)(inputs))
        super().__init__(inputs, layers.Dense(5, activation="softmax")(x))


class OverridesCall(FunctionalOfItsOwnClass):
    """A model whose graph doesn't describe its computation."""

    def call(self, x, training=None):
        return super().call(x, training=training) ** 2


def test_a_functional_subclass_is_folded_but_not_one_with_its_own_call():
    x, _ = networks.vectors()
    model = networks.trained_looking(FunctionalOfItsOwnClass())
    logits = FrozenTeacher(model)(x)
    np.testing.assert_allclose(tf.nn.softmax(logits), model(x, training=False), atol=1e-6)
    assert np.abs(np.exp(logits).sum(axis=1) - 1).max() > 1e-3
    other = networks.trained_looking(OverridesCall())
    with pytest.raises(InputError, match="can't be found"):
        FrozenTeacher(other)
    teacher = FrozenTeacher(other, outputs="logits")
    np.testing.assert_allclose(teacher(x), other(x, training=False), atol=1e-6)


def test_teachers_with_different_inputs_are_refused():
    with pytest.raises(InputError, match=r"\(4,\) and \(6,\)"):
        FrozenTeacher([networks.dense_classifier(), networks.dense_classifier(features=6)])


@pytest.mark.parametrize(("softmax", "removable"), [(False, True), (True, True), (True, False)])
def test_class_indices_pick_and_order_the_outputs(softmax, removable):
    model = networks.dense_classifier(6, softmax=softmax)
    x, _ = networks.vectors()
    outputs = model(x).numpy()
    kind = "probabilities" if softmax else "logits"
    teacher = FrozenTeacher(model, "auto" if removable else kind, class_indices=(4, 0, 3))
    kept = (np.log(outputs) if softmax else outputs)[:, [4, 0, 3]]
    np.testing.assert_allclose(tf.nn.log_softmax(teacher(x)), tf.nn.log_softmax(kept), atol=1e-5)
    assert teacher.num_classes == 3


def test_class_indices_are_those_of_each_teacher():
    one, other = networks.dense_classifier(6), networks.dense_classifier(6)
    x, _ = networks.vectors()
    mean = np.mean([tf.nn.softmax(m(x).numpy()[:, [4, 0]]) for m in (one, other)], axis=0)
    teacher = FrozenTeacher([one, other], class_indices=np.array([4, 0]))
    np.testing.assert_allclose(teacher(x), np.log(mean), atol=1e-5)
    apart = [FrozenTeacher(model, class_indices=[4, 0]) for model in (one, other)]
    np.testing.assert_allclose(FrozenTeacher(apart)(x), teacher(x), atol=1e-6)
    # For a frozen teacher with class indices, they index its outputs.
    twice = FrozenTeacher(FrozenTeacher(one, class_indices=[5, 4, 0]), class_indices=[1, 2])
    np.testing.assert_allclose(twice(x), apart[0](x), atol=1e-6)
    mixed = [FrozenTeacher(one, class_indices=[4, 0]), networks.dense_classifier(2)]
    assert FrozenTeacher(mixed).num_classes == 2


@pytest.mark.parametrize(
    ("indices", "named"),
    [
        ([0, 6], r"is \[0, 6\], .* from 0 to 5"),
        ([0, -1], r"is \[0, -1\]"),
        ([0, 1, 0], "two different integers"),
        ([], "at least two"),
        ([0.0, 1.0], "different integers"),
        (["0", "1"], "from 0 to 5"),
        (3, "class_indices is 3"),
    ],
)
def test_impossible_class_indices_are_refused_in_one_line(indices, named):
    with pytest.raises(InputError, match=named) as caught:
        FrozenTeacher(networks.dense_classifier(6), class_indices=indices)
    assert "\n" not in str(caught.value)


def test_a_teacher_counts_its_folded_normalizations():
    def half_folded():
        inputs = keras.Input((8, 8, 4))
        x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
        x = layers.BatchNormalization()(layers.ReLU()(x))
        return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))

    teacher = FrozenTeacher(half_folded())
    assert (teacher.num_folded, teacher.num_normalizations) == (1, 2)
    several = FrozenTeacher([teacher, half_folded()])
    assert (several.num_folded, several.num_normalizations) == (2, 4)
    assert FrozenTeacher(networks.dense_classifier()).num_normalizations == 0


@pytest.mark.parametrize(("dtype", "softmax"), [("bfloat16", False), ("float16", True)])
def test_half_precision_gives_nearly_the_same_logits(dtype, softmax):
    model = networks.convolutional_classifier(softmax=softmax)
    x, _ = networks.images()
    exact, half = FrozenTeacher(model)(x).numpy(), FrozenTeacher(model, dtype=dtype)
    logits = half(x).numpy()
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - exact).max() <= 0.02 * np.abs(exact).max()
    assert (half.num_folded, half.num_normalizations) == (4, 4)
    # The preprocessing and the last layer stay exact, and the given model doesn't change.
    snapshot = half._members[0].snapshot
    dtypes = [layer.compute_dtype for layer in snapshot.layers]
    assert dtypes[:3] == ["float32", "float32", dtype]
    assert dtypes[-1] == "float32"
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in snapshot.weights} == {"float32"}
    assert half.fingerprint() != FrozenTeacher(model).fingerprint()
    assert FrozenTeacher(model, dtype="float32").fingerprint() == FrozenTeacher(model).fingerprint()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_a_model_built_in_half_precision_is_folded_in_float32(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = networks.staged_classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    x, _ = networks.images(16)
    weights = model.get_weights()
    exact = networks.staged_classifier()
    exact.set_weights([np.float32(weight) for weight in weights])
    exact = exact(x, training=False).numpy()
    given = np.float32(model(x, training=False))
    scale = np.ptp(exact)
    rounding = np.abs(given - exact).max() / scale
    for dtype in (None, "float32", "bfloat16", "float16"):
        teacher = FrozenTeacher(model, dtype=dtype)
        error = np.abs(teacher(x) - exact).max() / scale
        assert error <= (1e-5 if dtype == "float32" else 0.03), (dtype, error)
        assert (teacher.num_folded, teacher.num_normalizations) == (3, 3)
        inner = teacher._members[0].snapshot.layers[2].compute_dtype
        assert inner == (dtype or policy.removeprefix("mixed_"))
        if dtype is None:
            assert 0 < error < 3 * rounding + 1e-4
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    distiller = SimilarityTransferDistiller(networks.staged_classifier(), FrozenTeacher(model))
    distiller.compile("sgd")
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(loaded.teacher(x), distiller.teacher(x), atol=0.03 * scale)


def test_a_half_precision_teacher_is_saved_with_the_distiller(tmp_path):
    x, _ = networks.images()
    teacher = FrozenTeacher(networks.convolutional_classifier(), dtype="bfloat16")
    distiller = SimilarityTransferDistiller(networks.small_convolutional_classifier(), teacher)
    distiller.compile("sgd")
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(loaded.teacher(x), teacher(x), atol=1e-3)
    assert loaded.teacher.num_folded == 4


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="dtype is 'half'"):
        FrozenTeacher(networks.dense_classifier(), dtype="half")
