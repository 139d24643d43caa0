"""Two replicas train as one device does, and say so in what they log."""

import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import numpy as np, keras, tensorflow as tf, networks
from keras import layers
from stkd_keras import InputError, Mixup, SGD, SimilarityTransferDistiller
from stkd_keras.distribution import make_strategy
strategy = make_strategy("mirrored", logical_devices=2)
assert strategy.num_replicas_in_sync == 2

def make(scope=strategy, convolutional=False, compiled=True, **settings):
    keras.utils.set_random_seed(0)
    build = networks.convolutional_classifier if convolutional else networks.dense_classifier
    teacher = build(width=16)
    with scope.scope():
        distiller = SimilarityTransferDistiller(build(width=6), teacher, **settings)
        if compiled:
            distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    return distiller

one_device = tf.distribute.get_strategy()
local = strategy.experimental_local_results
"""


def run(script, tmp_path, repository):
    """Runs a script on two logical devices, which have to be made before TensorFlow's start."""
    completed = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
        cwd=tmp_path,
        env={
            "PYTHONPATH": f"{repository}:{repository / 'tests'}",
            "PATH": "/usr/bin:/bin",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]


def test_two_replicas_of_32_train_as_one_device_of_64(tmp_path, repository):
    run(
        """
        x, y = networks.vectors(192)
        logs = []
        for scope in (strategy, one_device):
            d = make(scope, mixing=None)
            h = d.fit(x, y, batch_size=64, epochs=3, shuffle=False, verbose=0,
                      validation_data=(x[:101], y[:101])).history
            logs.append(h)
            weights = d.student.get_weights()
            if scope is strategy:
                two = weights
                for v in d.trainable_variables:
                    a, b = local(v.value)
                    np.testing.assert_array_equal(a, b)
        for a, b in zip(two, weights):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert set(logs[0]) == set(logs[1]), logs
        for name in logs[0]:
            np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4, err_msg=name)
        """,
        tmp_path,
        repository,
    )


def test_replicas_draw_different_mixtures_of_their_step(tmp_path, repository):
    run(
        """
        seeds = []
        class Recorder(Mixup):
            def __call__(self, x, y, sample_weight=None, *, seed):
                tf.py_function(lambda s: seeds.append(tuple(s.numpy())), [seed], [])
                return super().__call__(x, y, sample_weight, seed=seed)
        d = make(mixing=Recorder(1.0), data_seed=7)
        d.fit(*networks.vectors(64), batch_size=16, verbose=0)
        expected = {tuple(d.mixing_seed(s, r).numpy()) for s in range(4) for r in range(2)}
        assert len(expected) == 8 and set(seeds) == expected and len(seeds) == 8
        """,
        tmp_path,
        repository,
    )


@pytest.mark.parametrize("count", [1, 33, 64, 101])
def test_evaluation_is_that_of_one_device_for_any_number_of_examples(count, tmp_path, repository):
    run(
        f"""
        x, y = networks.images({count})
        distillers = [make(s, convolutional=True) for s in (strategy, one_device)]
        a, b = (d.evaluate(x, y, batch_size=64, verbose=0, return_dict=True) for d in distillers)
        for name in b:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
        """,
        tmp_path,
        repository,
    )


def test_batch_statistics_are_averaged_before_validation_and_before_saving(tmp_path, repository):
    run(
        """
        d = make(convolutional=True)
        statistics = [v for v in d.student.non_trainable_variables if "moving" in v.path]
        checked, different = [], []
        class Different(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                different.append(any(
                    (a.numpy() != b.numpy()).any() for a, b in (local(v.value) for v in statistics)
                ))
        class Averaged(keras.callbacks.Callback):
            def check(self, *_):
                for v in statistics:
                    a, b = local(v.value)
                    np.testing.assert_array_equal(a, b)
                checked.append(1)
            on_test_begin = on_epoch_end = check
        x, y = networks.images(128)
        checkpoint = keras.callbacks.ModelCheckpoint("c.keras", save_freq=1)
        d.fit(x, y, batch_size=64, epochs=2, verbose=0, validation_data=(x, y),
              callbacks=[Different(), checkpoint, Averaged()])
        assert checked and all(different)
        d.student.save("s.keras")
        loaded = keras.saving.load_model("s.keras")
        np.testing.assert_allclose(loaded.predict(x, verbose=0),
                                   d.student.predict(x, verbose=0), atol=1e-5)
        """,
        tmp_path,
        repository,
    )


def test_a_replica_without_examples_leaves_nothing_that_is_not_a_number(tmp_path, repository):
    run(
        """
        from stkd_keras import fuse_batch_normalization
        d = make(convolutional=True)
        fuse_batch_normalization(d.student)
        d.fit(*networks.images(65), batch_size=64, verbose=0)
        for v in d.student.variables:
            for value in local(v.value):
                assert np.isfinite(value.numpy()).all(), v.path
        """,
        tmp_path,
        repository,
    )


def test_what_keras_cannot_do_is_refused_in_one_line(tmp_path, repository):
    run(
        """
        def refused(use, named):
            try:
                use()
            except InputError as error:
                assert named in str(error) and "\\n" not in str(error), error
            else:
                raise AssertionError(named)

        x, y = networks.vectors(66)
        refused(lambda: make().fit(x, y, batch_size=33, verbose=0), "33 examples")
        ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(33)
        refused(lambda: make().fit(ds, verbose=0), "33 examples")
        for option in ({"gradient_accumulation_steps": 2},
                       {"use_ema": True, "ema_overwrite_frequency": 2}):
            d = make(compiled=False)
            refused(lambda: d.compile(keras.optimizers.SGD(0.1, **option)), list(option)[-1])
        """,
        tmp_path,
        repository,
    )
