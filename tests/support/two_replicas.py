"""Checks of training on two replicas, as a script because TensorFlow splits the CPU only once.

    python tests/support/two_replicas.py results.json

runs every function whose name starts with `check_`, and writes null or a traceback for each.
"""

import contextlib
import json
import pathlib
import sys
import tempfile
import traceback
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

from stkd_keras import (
    InputError,
    Mixup,
    SimilarityTransferDistiller,
    data,
    experiment,
    fuse_batch_normalization,
    methods,
    record_teacher,
)
from stkd_keras.distribution.strategy import make_strategy

STRATEGY = make_strategy("mirrored", logical_devices=2)
ONE_DEVICE = tf.distribute.get_strategy()
local = STRATEGY.experimental_local_results
SMALL = networks.small_convolutional_classifier


def make(strategy=STRATEGY, build=networks.dense_classifier, compiled=True, **settings):
    """Returns a distiller made under a strategy, always with the same initial weights."""
    keras.utils.set_random_seed(0)
    teacher = build(width=16)
    with strategy.scope():
        distiller = SimilarityTransferDistiller(build(width=6), teacher, **settings)
        if compiled:
            distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    return distiller


def check_relations_have_the_size_they_have_on_one_device():
    """SP and PKT of half a batch are about twice as large."""
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(64, 8)).astype("float32") for _ in range(2))

    def loss(term, images):
        return term({"embedding": student[images]}, {"embedding": teacher[images]}, student)

    def half(term):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return loss(term, slice(32 * replica, 32 * replica + 32))

    for make_term in (methods.SP, methods.PKT, methods.RKD):
        term = make_term(["embedding"])
        halves = np.mean(local(STRATEGY.run(half, args=(term,))))
        assert 0.8 < halves / loss(term, slice(64)) < 1.25, term.name


def check_two_replicas_train_like_one_device():
    """Without mixing and batch normalization."""
    x, y = networks.vectors(192)
    histories, weights = [], []
    for strategy in (STRATEGY, ONE_DEVICE):
        distiller = make(strategy, mixing=None)
        history = distiller.fit(
            x, y, batch_size=64, epochs=2, shuffle=False, verbose=0,
            validation_data=(x[:101], y[:101]),
        )  # fmt: skip
        histories.append(history.history)
        weights.append(distiller.student.get_weights())
        if strategy is STRATEGY:
            for variable in distiller.trainable_variables:
                np.testing.assert_array_equal(*local(variable.value))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert set(histories[0]) == set(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, err_msg=name)


def check_xla_trains_like_without_xla():
    """Mixtures, batch normalization, terms, metrics, and an empty batch at the end."""
    x, y = networks.images(129)
    histories, weights = [], []
    for jit_compile in (True, False):
        distiller = make(build=SMALL, mixing=Mixup(1.0), terms=[methods.StandardizedKD()])
        with STRATEGY.scope():
            distiller.compile(
                keras.optimizers.SGD(0.01), metrics=["accuracy"], jit_compile=jit_compile
            )
        assert distiller.jit_compile == jit_compile
        history = distiller.fit(
            x, y, batch_size=32, epochs=3, shuffle=False, verbose=0,
            validation_data=(x[:101], y[:101]),
        )  # fmt: skip
        histories.append(history.history)
        weights.append(distiller.student.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert set(histories[0]) == set(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5, err_msg=name)


def check_fine_tuning_trains_like_on_one_device():
    """With a backbone that is frozen for three steps, clipping, and averages of the weights."""
    x, y = networks.vectors(192)
    results = []
    for strategy in (STRATEGY, ONE_DEVICE):
        distiller = make(strategy, mixing=None, compiled=False, label_smoothing=0.1)
        with strategy.scope():
            optimizer = experiment.make_optimizer(
                0.05, 0.05, 60, "adamw", backbone_variables=2, backbone_learning_rate=0.005,
                frozen_steps=3, clip_norm=1e3, ema=0.7,
            )  # fmt: skip
            distiller.compile(optimizer)
        before = distiller.student.get_weights()
        distiller.fit(x[:96], y[:96], batch_size=32, shuffle=False, verbose=0)
        for a, b in zip(before[:2], distiller.student.get_weights()[:2], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        distiller.fit(x, y, batch_size=32, shuffle=False, verbose=0)
        results.append([np.asarray(v) for v in (*distiller.variables, *optimizer.variables)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def check_loss_terms_train_like_on_one_device():
    """Even if a replica gets an empty batch."""
    x, y = networks.vectors(128)
    results = []
    for strategy in (STRATEGY, ONE_DEVICE):
        distiller = make(strategy, mixing=None, terms=[methods.StandardizedKD()])
        history = distiller.fit(x, y, batch_size=64, epochs=2, shuffle=False, verbose=0).history
        results.append((history, distiller.student.get_weights()))
    (mine, my_weights), (its, its_weights) = results
    for name in ("loss", "kd_standardized"):
        np.testing.assert_allclose(mine[name], its[name], rtol=1e-4)
    for a, b in zip(my_weights, its_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    distiller = make(mixing=None, terms=[methods.RKD(), methods.CC()])
    history = distiller.fit(x[:65], y[:65], batch_size=64, shuffle=False, verbose=0).history
    assert np.isfinite([history["loss"], history["rkd"], history["cc"]]).all()


def check_pretrained_layers_are_frozen_after_their_stage():
    x, y = networks.images(64)
    term = methods.FT(features=("map",), pretraining_steps=1)
    keras.utils.set_random_seed(0)
    with STRATEGY.scope():
        student, teacher = (SMALL(width=w) for w in (4, 8))
        distiller = SimilarityTransferDistiller(
            student, teacher, terms=[term],
            student_features={"map": student.layers[-3].name},
            teacher_features={"map": teacher.layers[-3].name},
        )  # fmt: skip
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    weights = []
    for _ in range(3):
        distiller.fit(x, y, batch_size=64, verbose=0)
        weights.append([[w.numpy() for w in local(v.value)] for v in term.encoder.variables])
    for first, last in zip(weights[0], weights[2], strict=True):
        np.testing.assert_array_equal(first, last)


def check_a_term_with_a_memory_is_refused():
    with pytest.raises(InputError, match="crd keeps a memory of all images"):
        make(mixing=None, terms=[methods.CRD(64)])


def check_unlabeled_images_count_like_on_one_device():
    """Even if a replica has no labels, or if there are none at all."""
    x, y = networks.vectors(128)
    y[::2] = -1
    y[64:96] = -1
    for labels, settings in ((y, {}), (None, {"label_weight": 0.0})):
        histories, weights = [], []
        for strategy in (STRATEGY, ONE_DEVICE):
            distiller = make(strategy, mixing=None, **settings)
            history = distiller.fit(x, labels, batch_size=64, epochs=2, shuffle=False, verbose=0)
            histories.append(history.history)
            weights.append(distiller.student.get_weights())
        assert set(histories[0]) == set(histories[1])
        for name, values in histories[0].items():
            np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, err_msg=name)
        for a, b in zip(*weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def check_replicas_draw_different_mixtures():
    """The seed depends on the step and the replica."""
    seeds = []

    class Recorder(Mixup):
        def __call__(self, x, y, sample_weight=None, *, seed):
            tf.py_function(lambda s: seeds.append(tuple(s.numpy())), [seed], [])
            return super().__call__(x, y, sample_weight, seed=seed)

    distiller = make(mixing=Recorder(1.0), data_seed=7)
    distiller.fit(*networks.vectors(64), batch_size=16, verbose=0)
    expected = {tuple(distiller.mixing_seed(s, r).numpy()) for s in range(4) for r in range(2)}
    assert len(expected) == len(seeds) == 8
    assert set(seeds) == expected


def check_evaluation_equals_that_of_one_device():
    """For any number of examples, even if a replica gets none."""
    two, one = make(build=SMALL), make(ONE_DEVICE, build=SMALL)
    for count in (1, 64, 101):
        x, y = networks.images(count)
        a, b = (d.evaluate(x, y, batch_size=64, verbose=0, return_dict=True) for d in (two, one))
        for name, value in b.items():
            np.testing.assert_allclose(a[name], value, rtol=1e-5, err_msg=f"{name}, {count}")


def check_batch_statistics_are_averaged_before_validation_and_saving():
    """They differ between replicas within the epoch."""
    distiller = make(build=SMALL)
    statistics = [v for v in distiller.student.non_trainable_variables if "moving" in v.path]
    averaged, different = [], []

    class Different(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pairs = [local(v.value) for v in statistics]
            different.append(any((a.numpy() != b.numpy()).any() for a, b in pairs))

    class Averaged(keras.callbacks.Callback):
        def check(self, *_):
            for variable in statistics:
                np.testing.assert_array_equal(*local(variable.value))
            averaged.append(True)

        on_test_begin = on_epoch_end = check

    class AveragedAfterSaving(Averaged):
        def on_train_batch_end(self, batch, logs=None):
            self.check()

    x, y = networks.images(128)
    checkpoint = keras.callbacks.ModelCheckpoint("checkpoint.keras", save_freq=1)
    distiller.fit(
        x, y, batch_size=64, epochs=2, verbose=0, validation_data=(x, y),
        callbacks=[Different(), checkpoint, AveragedAfterSaving(), Averaged()],
    )  # fmt: skip
    assert averaged
    assert all(different)
    distiller.student.save("student.keras")
    loaded = keras.saving.load_model("student.keras")
    expected = distiller.student.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)


def check_an_empty_batch_of_a_replica_leaves_no_nan():
    """With 65 examples in batches of 64, the second replica's last batch is empty."""
    for build, fuse in ((networks.convolutional_classifier, False), (SMALL, True)):
        distiller = make(build=build)
        if fuse:
            fuse_batch_normalization(distiller.student)
        distiller.fit(*networks.images(65), batch_size=64, verbose=0)
        for variable in distiller.student.variables:
            for value in local(variable.value):
                assert np.isfinite(value.numpy()).all(), variable.path


def check_a_recorded_teacher_trains_like_the_live_one():
    teacher, losses = SMALL(), []
    batches = data.pipeline(data.load("digits"), "train", 64, 0)
    with STRATEGY.scope():
        recorded = record_teacher("t.replay", teacher, batches, Mixup(), 0, 4, verbose=False)
    for source, given in ((teacher, batches), (recorded, recorded.attach(batches))):
        keras.utils.set_random_seed(1)
        with STRATEGY.scope():
            distiller = SimilarityTransferDistiller(SMALL(), source, Mixup())
            distiller.compile(keras.optimizers.SGD(0.01))
        history = distiller.fit(given, steps_per_epoch=4, verbose=0, shuffle=False).history
        losses.append(history["soft_loss"])
    np.testing.assert_allclose(*losses, rtol=1e-3)


def check_the_suggested_batch_size_splits_evenly():
    x, y = networks.images(65)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=r"batch_size=\d*[02468] "):
            make(build=SMALL).fit(x, y, batch_size=64, verbose=0)


def check_precision_and_optimizer_options_work():
    x, y = networks.images(65)
    for policy, optimizer, options in [
        ("mixed_float16", lambda: keras.optimizers.AdamW(1e-3, global_clipnorm=1.0), {}),
        ("mixed_bfloat16", lambda: keras.optimizers.SGD(0.01, use_ema=True), {}),
        ("float32", lambda: keras.optimizers.SGD(0.01), {"run_eagerly": True}),
    ]:
        with STRATEGY.scope():
            keras.config.set_dtype_policy(policy)
            student = SMALL()
            keras.config.set_dtype_policy("float32")
            distiller = SimilarityTransferDistiller(student, SMALL(width=8))
            distiller.compile(optimizer(), metrics=["accuracy"], **options)
        history = distiller.fit(
            x[:64], y[:64], batch_size=32, verbose=0, validation_data=(x, y),
            sample_weight=np.ones(64),
        )  # fmt: skip
        assert all(np.isfinite(v[-1]) for v in history.history.values()), (policy, history.history)
        assert distiller.step.numpy() == 2


def check_unsupported_options_are_refused_in_one_line():
    x, y = networks.vectors(66)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(33)
    sgd = keras.optimizers.SGD
    uses = {
        "first batch has 33": lambda: make().fit(x, y, batch_size=33, verbose=0),
        "batch has 33": lambda: make().fit(batches, verbose=0),
        "gradient_accumulation_steps": lambda: make(compiled=False).compile(
            sgd(0.1, gradient_accumulation_steps=2)
        ),
        "ema_overwrite_frequency": lambda: make(compiled=False).compile(
            sgd(0.1, use_ema=True, ema_overwrite_frequency=2)
        ),
        "steps_per_execution": lambda: make(compiled=False).compile("sgd", steps_per_execution=2),
    }
    for named, use in uses.items():
        with pytest.raises(InputError, match=named) as caught:
            use()
        assert "\n" not in str(caught.value)


def _checks():
    return [value for name, value in list(globals().items()) if name.startswith("check_")]


def _failure(check) -> str | None:
    try:
        check()
    except BaseException:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    output = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        results = {check.__name__: _failure(check) for check in _checks()}
    output.write_text(json.dumps(results))
