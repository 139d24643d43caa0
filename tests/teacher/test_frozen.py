"""The frozen teacher answers what the model answers, for less, and nothing changes it."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from stkd_keras import FrozenTeacher, InputError, SimilarityTransferDistiller
from stkd_keras.classifiers.folding import fold_batch_normalization


def log_softmax(z):
    z = np.float64(z) - np.max(z, axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def functional(middle, head=None, shape=(8, 8, 4)):
    """A model made by `middle` from a (8, 8, 4) tensor, with a dense head."""
    inputs = keras.Input(shape)
    x = middle(inputs)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    return networks.trained_looking(keras.Model(inputs, (head or layers.Dense(5))(x)))


def normalized(x):
    return layers.BatchNormalization()(x)


def shared_convolution(x):
    convolution = layers.Conv2D(4, 3, padding="same")
    return layers.Add()(
        [layers.BatchNormalization()(convolution(x)), convolution(layers.ReLU()(x))]
    )


def convolution_with_two_readers(x):
    y = layers.Conv2D(4, 3, padding="same")(x)
    return layers.Add()([layers.BatchNormalization()(y), y])


def normalization_used_twice(x):
    normalization = layers.BatchNormalization()
    y = normalization(layers.Conv2D(4, 3, padding="same")(x))
    return layers.Add()([y, normalization(layers.Conv2D(4, 3, padding="same")(x))])


def nested(x):
    inner_in = keras.Input((8, 8, 4))
    y = layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(inner_in))
    inner = keras.Model(inner_in, layers.ReLU()(y))
    sequential = keras.Sequential(
        [keras.Input((6, 6, 6)), layers.DepthwiseConv2D(3), layers.BatchNormalization()]
    )
    return sequential(inner(x))


def nested_used_twice(x):
    inner_in = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 3, padding="same")(inner_in)
    inner = keras.Model(inner_in, layers.BatchNormalization()(y))
    return inner(inner(x))


# The layers before the head, and the number of folded normalizations.
GRAPHS = {
    "conv with bias": (lambda x: normalized(layers.Conv2D(6, 3)(x)), 1),
    "conv, groups": (lambda x: normalized(layers.Conv2D(6, 3, groups=2, use_bias=False)(x)), 1),
    "depthwise, multiplier": (
        lambda x: layers.BatchNormalization(scale=False)(
            layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=False)(x)
        ),
        1,
    ),
    "separable": (
        lambda x: layers.BatchNormalization(center=False)(layers.SeparableConv2D(6, 3)(x)),
        1,
    ),
    "dense": (lambda x: normalized(layers.Dense(6)(layers.Flatten()(x))), 1),
    "dense on images": (lambda x: normalized(layers.Dense(6)(x)), 1),
    "nested": (nested, 2),
    "nested, used twice": (nested_used_twice, 1),
    "activation between": (lambda x: normalized(layers.Conv2D(6, 3, activation="relu")(x)), 0),
    "shared convolution": (shared_convolution, 0),
    "two readers": (convolution_with_two_readers, 0),
    "normalization used twice": (normalization_used_twice, 0),
    "another axis": (lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(6, 3)(x)), 0),
    "renorm": (lambda x: layers.BatchNormalization(renorm=True)(layers.Conv2D(6, 3)(x)), 0),
    "before the convolution": (lambda x: layers.Conv2D(6, 3)(layers.ReLU()(normalized(x))), 0),
    "transposed": (lambda x: normalized(layers.Conv2DTranspose(6, 3)(x)), 0),
    "output of the model": (lambda x: normalized(layers.Dense(5)(layers.Flatten()(x))), 1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_folding_does_what_is_exact_and_keeps_the_logits(name):
    middle, folded = GRAPHS[name]
    keras.utils.set_random_seed(1)
    head = layers.Identity() if name == "output of the model" else None
    model = functional(middle, head)
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype("float32")
    expected = model(x, training=False).numpy()
    logits = FrozenTeacher(model)(x).numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std(axis=0).max()
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    assert fold_batch_normalization(copy) == folded
    np.testing.assert_allclose(copy(x, training=False), expected, atol=1e-4 * expected.std())


def test_a_folded_model_saved_and_loaded_by_keras_gives_the_same_logits(tmp_path):
    model = networks.convolutional_classifier()
    x, _ = networks.images()
    expected = model(x, training=False).numpy()
    fold_batch_normalization(model)
    model.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_allclose(loaded(x), expected, atol=1e-4 * expected.std())


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
}


@pytest.mark.parametrize("name", HEADS)
def test_logits_come_out_whatever_the_last_activation_is(name):
    head, kind = HEADS[name]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(layers.Dense(6, activation="relu")(inputs)))
    x, _ = networks.vectors()
    answer = model(x, training=False).numpy()
    logits = FrozenTeacher(model)(x).numpy()
    if kind == "logits":
        np.testing.assert_allclose(logits, answer, atol=1e-5)
    else:
        np.testing.assert_allclose(np.exp(log_softmax(logits)), answer, atol=1e-6)
        # A removed softmax leaves logits that aren't normalised.
        assert np.abs(np.exp(logits).sum(axis=1) - 1).max() > 1e-3
    np.testing.assert_allclose(model(x, training=False), answer)


def test_logits_of_a_removed_softmax_keep_what_probabilities_lose():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, activation="softmax")])
    model.layers[-1].set_weights([np.eye(2, dtype="float32"), np.zeros(2, "float32")])
    logits = FrozenTeacher(model)(np.array([[200.0, 0.0]], "float32"))
    np.testing.assert_allclose(logits, [[200.0, 0.0]])


@pytest.mark.parametrize(
    "head",
    [
        lambda x: layers.Dense(5, activation="sigmoid")(x),
        lambda x: layers.ReLU()(layers.Dense(5)(x)),
        lambda x: layers.Average()([softmax_dense(x), softmax_dense(x)]),
        lambda x: layers.Dense(5, activation="log_softmax")(x),
    ],
)
def test_another_last_activation_is_refused_unless_told(head):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(inputs))
    with pytest.raises(InputError, match='outputs="logits" or "probabilities"'):
        FrozenTeacher(model)
    x, _ = networks.vectors()
    np.testing.assert_allclose(FrozenTeacher(model, outputs="logits")(x), model(x), rtol=1e-5)


class Subclassed(keras.Model):
    """A user's own class, which can neither be inspected nor rebuilt."""

    def __init__(self, classes):
        super().__init__()
        self.dense, self.norm = layers.Dense(classes), layers.BatchNormalization()
        self.dropout = layers.Dropout(0.5)

    def call(self, x, training=None):
        return keras.ops.softmax(self.dropout(self.norm(self.dense(x)), training=training))


def test_a_subclassed_model_has_to_be_told_and_is_a_snapshot_all_the_same():
    model = Subclassed(5)
    x, _ = networks.vectors()
    expected = model(x, training=False).numpy()
    with pytest.raises(InputError, match="can't be found"):
        FrozenTeacher(model)
    teacher = FrozenTeacher(model, outputs="probabilities")
    model.set_weights([w + 1 for w in model.get_weights()])
    np.testing.assert_allclose(np.exp(log_softmax(teacher(x))), expected, atol=1e-6)
    assert teacher.num_classes == 5


@keras.saving.register_keras_serializable("test")
class Scale(layers.Layer):
    """A layer whose config leaves an argument out."""

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
    mean = (np.exp(log_softmax(one(x))) + other(x).numpy()) / 2
    for teacher in (FrozenTeacher([one, other]), FrozenTeacher([FrozenTeacher(one), other])):
        np.testing.assert_allclose(teacher(x), np.log(mean), atol=1e-5)


def test_later_changes_of_the_model_have_no_effect_and_the_model_is_not_touched():
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


def test_a_teacher_compiled_with_a_users_own_loss_is_taken():
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


def test_the_log_says_once_that_a_teacher_is_not_folded(caplog):
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
def test_what_is_no_classifier_is_refused_in_one_line(make, named):
    with pytest.raises(InputError, match=named) as caught:
        FrozenTeacher(make())
    assert "\n" not in str(caught.value)


def test_the_imported_resnet56_answers_folded_what_pytorch_answers(shared):
    models = pytest.importorskip("models")
    expected = np.load(shared / "weights" / "resnet56-cifar10-expected.npz")
    model = models.load(
        "resnet56",
        input_shape=(32, 32, 3),
        num_classes=10,
        weights=shared / "weights" / "resnet56-cifar10.safetensors",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    logits = FrozenTeacher(model)(expected["images"].astype("float32")).numpy()
    assert np.abs(logits - expected["logits"]).max() <= 1e-3


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
    """One whose graph doesn't say what it computes."""

    def call(self, x, training=None):
        return super().call(x, training=training) ** 2


def test_a_functional_model_of_its_own_class_is_folded_but_not_one_with_its_own_call():
    x, _ = networks.vectors()
    model = networks.trained_looking(FunctionalOfItsOwnClass())
    logits = FrozenTeacher(model)(x)
    np.testing.assert_allclose(np.exp(log_softmax(logits)), model(x, training=False), atol=1e-6)
    assert np.abs(np.exp(logits).sum(axis=1) - 1).max() > 1e-3
    other = networks.trained_looking(OverridesCall())
    with pytest.raises(InputError, match="can't be found"):
        FrozenTeacher(other)
    told = FrozenTeacher(other, outputs="logits")
    np.testing.assert_allclose(told(x), other(x, training=False), atol=1e-6)


def test_a_mobilenet_of_keras_applications_is_folded_and_exact():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    x, _ = networks.images(32, shape=(32, 32, 3))
    x /= 255
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)  # Real statistics: with random ones all images would look the same.
    for weight in model.trainable_weights:
        if weight.name in ("gamma", "beta"):
            weight.assign(weight + np.random.default_rng(0).uniform(-0.3, 0.3, weight.shape))
    head = keras.Model(model.input, model.layers[-2].output)
    expected = model.layers[-1].kernel.numpy().T @ head(x, training=False).numpy().T
    logits = FrozenTeacher(model)(x).numpy() - model.layers[-1].bias.numpy()
    assert np.abs(logits - expected.T).max() <= 1e-4 * expected.std(axis=1).max()
    copy = keras.models.clone_model(model)
    assert fold_batch_normalization(copy) == 52


def test_teachers_with_different_inputs_are_refused():
    with pytest.raises(InputError, match=r"\(4,\) and \(6,\)"):
        FrozenTeacher([networks.dense_classifier(), networks.dense_classifier(features=6)])


def test_a_squashed_layer_before_pooling_is_refused():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(5, 3, activation="sigmoid")(inputs)
    with pytest.raises(InputError, match="GlobalAveragePooling2D"):
        FrozenTeacher(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("removable", [False, True])
def test_class_indices_pick_and_order_the_outputs(softmax, removable):
    model = networks.dense_classifier(6, softmax=softmax)
    x, _ = networks.vectors()
    outputs = model(x).numpy()
    kind = "probabilities" if softmax else "logits"
    teacher = FrozenTeacher(model, "auto" if removable else kind, class_indices=(4, 0, 3))
    kept = (np.log(outputs) if softmax else outputs)[:, [4, 0, 3]]
    # The softmax over those kept: probabilities are divided by their sum.
    np.testing.assert_allclose(log_softmax(teacher(x)), log_softmax(kept), atol=1e-5)
    assert teacher.num_classes == 3


def test_class_indices_are_those_of_each_teacher():
    one, other = networks.dense_classifier(6), networks.dense_classifier(6)
    x, _ = networks.vectors()
    mean = np.mean([np.exp(log_softmax(m(x).numpy()[:, [4, 0]])) for m in (one, other)], axis=0)
    teacher = FrozenTeacher([one, other], class_indices=np.array([4, 0]))
    np.testing.assert_allclose(teacher(x), np.log(mean), atol=1e-5)
    apart = [FrozenTeacher(model, class_indices=[4, 0]) for model in (one, other)]
    np.testing.assert_allclose(FrozenTeacher(apart)(x), teacher(x), atol=1e-6)
    # Those of a teacher that has some already count its own.
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
        ([0], "at least two"),
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


def test_a_teacher_says_how_many_of_its_normalisations_are_folded():
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("softmax", [False, True])
def test_a_teacher_in_half_precision_answers_nearly_alike(dtype, softmax, tmp_path):
    model = networks.convolutional_classifier(softmax=softmax)
    x, _ = networks.images()
    exact, half = FrozenTeacher(model)(x).numpy(), FrozenTeacher(model, dtype=dtype)
    answer = half(x).numpy()
    assert answer.dtype == np.float32
    assert 0 < np.abs(answer - exact).max() <= 0.02 * np.abs(exact).max()
    assert (half.num_folded, half.num_normalizations) == (4, 4)
    # Pixels aren't rounded, the last layer isn't either, the model passed in stays as it was.
    snapshot = half._members[0].snapshot
    dtypes = [layer.compute_dtype for layer in snapshot.layers]
    assert dtypes[:3] == ["float32", "float32", dtype]
    assert dtypes[-1] == "float32"
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in snapshot.weights} == {"float32"}
    assert half.fingerprint() != FrozenTeacher(model).fingerprint()
    assert FrozenTeacher(model, dtype="float32").fingerprint() == FrozenTeacher(model).fingerprint()


def test_a_half_precision_teacher_is_saved_with_the_distiller(tmp_path):
    x, _ = networks.images()
    teacher = FrozenTeacher(networks.convolutional_classifier(), dtype="bfloat16")
    distiller = SimilarityTransferDistiller(networks.small_convolutional_classifier(), teacher)
    distiller.compile("sgd")
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(loaded.teacher(x), teacher(x), atol=1e-3)
    assert loaded.teacher.num_folded == 4


def test_an_unknown_precision_is_refused_and_so_is_what_cannot_have_another():
    with pytest.raises(InputError, match="dtype is 'half'"):
        FrozenTeacher(networks.dense_classifier(), dtype="half")
