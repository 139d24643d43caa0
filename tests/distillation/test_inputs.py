"""Tests of the labels and weights that `fit` and `evaluate` take."""

import warnings

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import make
from image_folders import write_images

from stkd_keras import InputError, SimilarityTransferDistiller


def of_unknown_shape(x, labels, shape):
    return tf.data.Dataset.from_generator(
        lambda: iter([(x, labels)]),
        output_signature=(tf.TensorSpec((16, 4)), tf.TensorSpec(shape, labels.dtype)),
    )


def test_labels_of_all_kinds_train_alike_in_one_process_with_xla():
    x, y = networks.vectors(16)
    rows = np.eye(5)[y]
    kinds = [
        (x, y), (x, y[:, None]), (x, rows), (x, y.astype("float64")),
        (of_unknown_shape(x, y, None),), (of_unknown_shape(x, rows, None),),
        (of_unknown_shape(x, y[:, None], (None, None)),),
        (of_unknown_shape(x, rows, (None, None)),),
    ]  # fmt: skip
    distiller = make(mixing=None)
    distiller.compile("sgd", metrics=["accuracy"], jit_compile=True)
    distiller.optimizer.learning_rate = 0.0
    losses = [
        distiller.fit(*data, batch_size=16 if len(data) == 2 else None, verbose=0).history
        for data in kinds
    ]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss["label_loss"], losses[0]["label_loss"], rtol=1e-6)
        np.testing.assert_allclose(loss["accuracy"], losses[0]["accuracy"], rtol=1e-6)


def test_folders_read_by_keras_train_like_their_arrays(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 8, size=(8, 8))
    distiller = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(2, (8, 8, 3)), soft_weight=0, mixing=None
    )
    distiller.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    histories = []
    for mode in ("int", "categorical", "binary", "arrays"):
        images = keras.utils.image_dataset_from_directory(
            tmp_path, label_mode=mode.replace("arrays", "int"), image_size=(8, 8), batch_size=16,
            shuffle=False, verbose=False,
        )  # fmt: skip
        data = [part.numpy() for part in next(iter(images))] if mode == "arrays" else [images]
        validation = {"validation_data": tuple(data) if mode == "arrays" else images}
        histories.append(distiller.fit(*data, batch_size=None, verbose=0, **validation).history)
    for history in histories[1:]:
        for name in ("label_loss", "accuracy"):
            np.testing.assert_allclose(history[name], histories[0][name], rtol=1e-5)
        assert {"val_loss", "val_accuracy"} <= set(history)


@pytest.mark.parametrize("label", [5, -2, 1.5])
def test_a_bad_label_is_named_in_one_line(label):
    x, y = networks.vectors(16)
    y = y.astype("float32")
    y[3] = label
    for data in ((x, y), (tf.data.Dataset.from_tensors((x, y)),)):
        with pytest.raises(InputError) as caught:
            make().fit(*data, verbose=0)
        assert f"the labels have a {label}" in str(caught.value)
        assert "from 0 to 4" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_padding_of_weight_0_changes_no_score(jit_compile):
    x, y = networks.vectors(20)
    padded_x = np.concatenate([x, np.ones((12, 4), "float32")])
    padded_y = np.concatenate([y, np.full(12, -1)])
    weights = np.float32([1] * 20 + [0] * 12)
    distiller = make()
    distiller.compile(
        "sgd", metrics=["accuracy"], weighted_metrics=["accuracy"], jit_compile=jit_compile
    )
    batches = tf.data.Dataset.from_tensor_slices((padded_x, padded_y, weights)).batch(16)
    padded = distiller.evaluate(batches, verbose=0, return_dict=True)
    plain = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert set(padded) == set(plain)
    for name, value in plain.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-5, err_msg=name)


class Batches(keras.utils.PyDataset):
    """A data set of one batch."""

    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


class Loader:
    """Like the DataLoader of PyTorch or Grain: makes new batches, as lists, for each epoch."""

    def __init__(self, *batches):
        self.batches = batches
        self.epochs = 0

    def __iter__(self):
        self.epochs += 1
        return iter([list(batch) for batch in self.batches])


SOURCES = {
    "arrays": lambda x, y: {"x": x, "y": y},
    "data set": lambda x, y: {"x": tf.data.Dataset.from_tensors((x, y))},
    "PyDataset": lambda x, y: {"x": Batches(x, y)},
    "generator": lambda x, y: {"x": (batch for batch in [(x, y)])},
    "iterator": lambda x, y: {"x": zip([x], [y], strict=True)},
    "loader": lambda x, y: {"x": Loader((x, y))},
}


@pytest.mark.parametrize("source", SOURCES)
def test_class_weights_are_means_over_the_classes_of_a_label_and_1_without_one(source):
    x, y = networks.vectors(16)
    y[:4] = -1
    one_hot = np.float32(np.eye(5)[y] * (y >= 0)[:, None])
    smooth = 0.9 * one_hot + 0.02 * (y >= 0)[:, None]
    mixed = np.float32(0.75 * one_hot + 0.25 * one_hot[::-1])  # Some are partly labeled.
    by_class = {0: 100.0, 1: 0.5, 3: 0.0}
    weights = np.array([100.0, 0.5, 1.0, 0.0, 1.0])
    distiller = make(mixing=None)
    distiller.optimizer.learning_rate = 0.0
    for labels, rows in ((y, one_hot), (one_hot, one_hot), (smooth, smooth), (mixed, mixed)):
        expected = np.float32(rows @ weights + (1 - rows.sum(axis=1)))
        arguments = SOURCES[source](x, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of generators with one epoch.
            weighted = distiller.fit(**arguments, class_weight=by_class, shuffle=False, verbose=0)
        by_hand = distiller.fit(x, rows, sample_weight=expected, shuffle=False, verbose=0)
        for loss in ("label_loss", "soft_loss"):
            np.testing.assert_allclose(
                weighted.history[loss], by_hand.history[loss], rtol=1e-5, err_msg=loss
            )


def test_class_weights_do_not_count_in_validation():
    x, y = networks.vectors(20)
    distiller = make(mixing=None)
    distiller.optimizer.learning_rate = 0.0
    plain, weighted = (
        distiller.fit(x, y, validation_split=0.3, class_weight=class_weight, verbose=0).history
        for class_weight in (None, dict.fromkeys(range(5), 100.0))
    )
    np.testing.assert_allclose(weighted["val_loss"], plain["val_loss"], rtol=1e-6)
    np.testing.assert_allclose(weighted["label_loss"], 100 * plain["label_loss"][0], rtol=1e-5)


WRONG = {
    "a class that doesn't exist": ({"class_weight": {5: 2.0}}, r"is \{5: 2.0\}, .*0 to 4"),
    "a class by name": ({"class_weight": {"cat": 2.0}}, "from class indices"),
    "a list of weights": ({"class_weight": [1.0] * 5}, "must be a dict"),
    "a negative weight": ({"class_weight": {0: -1.0}}, "at least 0"),
    "both weights": ({"class_weight": {0: 2.0}, "sample_weight": np.ones(16)}, "pass one"),
    "both weights in a data set": (
        {"x": tf.data.Dataset.from_tensors((*networks.vectors(16), np.ones(16)))}
        | {"y": None, "class_weight": {0: 2.0}},
        "pass one",
    ),
    "a nested list": ({"x": [[0.0] * 4] * 16}, "convert lists with numpy.array"),
    "several lists": ({"x": ([[0.0] * 4], [[0.0] * 4])}, "the data are a tuple"),
    "a file's name": ({"x": "images.npy"}, "the data are a str"),
    "nothing": ({"x": None}, "the data are a NoneType"),
    "a loader of images": (
        {"x": Loader(*zip(*networks.vectors(16), strict=True)), "y": None},
        "single images, but must be batches",
    ),
    "a loader without batches": ({"x": Loader(), "y": None}, "the data are empty"),
    "a data set of dicts": (
        {"x": tf.data.Dataset.from_tensors({"image": np.ones((16, 4))}), "y": None},
        r"must be \(images, labels\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_and_weights_are_refused_in_one_line(name):
    arguments, named = WRONG[name]
    x, y = networks.vectors(16)
    with pytest.raises(InputError, match=named) as caught:
        make().fit(**{"x": x, "y": y, "verbose": 0, **arguments})
    assert "\n" not in str(caught.value)


def test_a_loader_trains_and_validates_like_arrays_and_is_iterated_for_each_epoch():
    x, y = networks.vectors(32)
    loader = Loader((x[:16], y[:16]), (x[16:], y[16:]))
    arrays = {"x": x, "y": y, "batch_size": 16, "shuffle": False, "validation_data": (x, y)}
    histories = []
    for data in (arrays, {"x": loader, "validation_data": loader}):
        keras.utils.set_random_seed(0)
        histories.append(make(data_seed=1).fit(**data, epochs=2, verbose=0).history)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5, err_msg=name)
    assert loader.epochs >= 4
    # Two epochs of three steps are three times the two batches.
    steps = make().fit(loader, steps_per_epoch=3, epochs=2, verbose=0)
    assert min(steps.history["loss"]) > 0
    assert int(steps.model.step.numpy()) == 6


def test_batches_without_labels_may_come_from_anywhere():
    x, _ = networks.vectors(16)
    for data in (
        (each for each in [(x,)]),
        Batches(x),
        Loader((x,)),
        tf.data.Dataset.from_tensors(x),
    ):
        history = make(label_weight=0.0).fit(data, verbose=0).history
        assert np.isfinite(history["loss"]).all()


def test_labels_of_a_distributed_data_set_are_checked():
    x, y = networks.vectors(16)
    y[3] = 7
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        distiller = make()
    data = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors((x, y)))
    if distiller.jit_compile:  # XLA can't fail.
        assert np.isnan(distiller.fit(data, verbose=0).history["loss"][0])
    else:
        with pytest.raises(InputError, match="the labels have a 7"):
            distiller.fit(data, verbose=0)
    with pytest.raises(InputError, match="class_weight is given with a distributed data set"):
        distiller.fit(data, class_weight={0: 2.0}, verbose=0)
