import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras import data
from stkd_keras.errors import InputError


def numbered(count, num_classes=10) -> data.Split:
    """Image number i holds i in its four pixels."""
    images = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2, 1)
    return data.Split(images, np.arange(count) % num_classes)


def indices(images) -> np.ndarray:
    return np.asarray(images).astype(np.uint8).reshape(-1, 4).view(np.uint32)[:, 0]


def take(pipeline, count):
    return [(x.numpy(), y.numpy()) for x, y in pipeline.take(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for pair in zip(first, second, strict=True):
        for a, b in zip(*pair, strict=True):
            np.testing.assert_array_equal(a, b)


def epochs(split, batch_size, data_seed, count) -> list[np.ndarray]:
    steps = data.steps_per_epoch(split, batch_size)
    batches = take(data.pipeline(split, batch_size, data_seed, augment="none"), steps * count)
    for images, labels in batches:
        np.testing.assert_array_equal(labels, split.labels[indices(images)])
    return np.split(np.concatenate([indices(images) for images, _ in batches]), count)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


class TestPipeline:
    @settings(max_examples=8, deadline=None)
    @given(count=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 2**40))
    def test_each_image_at_most_once_an_epoch(self, count, batch_size, seed):
        batch_size = min(batch_size, count)
        for order in epochs(numbered(count), batch_size, seed, 2):
            assert len(order) == count // batch_size * batch_size
            assert len(set(order)) == len(order)

    @pytest.mark.parametrize("start", [1, 43, 44, 45, 100])
    def test_starting_at_a_step_is_going_there(self, digits, start):
        def batches(start_step, count):
            return take(data.pipeline(digits.train, 32, 5, start_step=start_step), count)

        assert data.steps_per_epoch(digits.train, 32) == 44
        assert_same(batches(0, start + 3)[start:], batches(start, 3))

    def test_iterating_again_gives_the_same(self, digits):
        pipeline = data.pipeline(digits.train, 32, 5)
        assert_same(take(pipeline, 60), take(pipeline, 60))

    def test_epochs_and_seeds_differ(self):
        split = numbered(1000)
        orders = epochs(split, 10, 0, 3) + epochs(split, 10, 1, 1)
        for i, first in enumerate(orders):
            for second in orders[:i]:
                assert (first == second).mean() < 0.01

    def test_augmentation_differs_between_epochs_and_from_the_order(self):
        split = data.Split(np.full((8, 16, 16, 1), 255, np.uint8), np.arange(8))
        batches = [x for x, _ in take(data.pipeline(split, 8, 0), 20)]
        assert len({x.tobytes() for x in batches}) == 20

    def test_the_order_is_uniform(self):
        # With classes in sequence, as folders have them, a poor shuffle shows: the number of a
        # class's images in a batch has the hypergeometric variance (TensorFlow's index_shuffle
        # has 0.8 of it).
        count, batch_size = 50_000, 125
        split = numbered(count)
        orders = np.concatenate(epochs(split, batch_size, 0, 4)).reshape(-1, batch_size)
        in_batch = np.stack([(orders * 10 // count == c).sum(1) for c in range(10)])
        expected = batch_size * 0.1 * 0.9 * (count - batch_size) / (count - 1)
        assert 0.93 < in_batch.var() / expected < 1.07

    def test_is_infinite_and_of_static_shape(self, digits):
        pipeline = data.pipeline(digits.train, 32, 0)
        assert pipeline.cardinality() == tf.data.INFINITE_CARDINALITY
        images, labels = pipeline.element_spec
        assert images == tf.TensorSpec((32, 8, 8, 1), tf.float32)
        assert labels == tf.TensorSpec((32,), tf.int64)

    def test_pixels_keep_their_range(self, digits):
        images = np.concatenate([x for x, _ in take(data.pipeline(digits.train, 32, 0), 10)])
        assert (images.min(), images.max()) == (0, 255)

    def test_fit(self, digits):
        model = keras.Sequential(
            [
                keras.layers.Rescaling(1 / 255),
                keras.layers.Flatten(),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(
            data.pipeline(digits.train, 32, 0, augment="none"),
            steps_per_epoch=44,
            epochs=10,
            shuffle=False,
            validation_data=data.evaluation_pipeline(digits.test, 100),
            verbose=0,
        )
        assert history.history["val_accuracy"][-1] > 0.8

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch_size": 0}, "batch_size=0"),
            ({"batch_size": 11}, "at most the 10"),
            ({"batch_size": 5, "augment": "standart"}, "standard"),
            ({"batch_size": 5, "start_step": -1}, "start_step=-1"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(InputError, match=message) as error:
            data.pipeline(numbered(10), data_seed=0, **arguments)
        assert "\n" not in str(error.value)


class TestEvaluationPipeline:
    @pytest.mark.parametrize(("batch_size", "batches"), [(1, 10), (3, 4), (5, 2), (10, 1), (64, 1)])
    def test_all_images_in_order(self, batch_size, batches):
        split = numbered(10, num_classes=7)
        pipeline = data.evaluation_pipeline(split, batch_size)
        assert pipeline.cardinality() == batches
        images, labels = (np.concatenate(parts) for parts in zip(*take(pipeline, -1), strict=True))
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, split.images)
        np.testing.assert_array_equal(labels, split.labels)

    def test_refuses(self):
        with pytest.raises(InputError, match="batch_size=0"):
            data.evaluation_pipeline(numbered(10), 0)


IN_A_FRESH_PROCESS = """
import json
import numpy as np, tensorflow as tf
from stkd_keras import data

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

small, large = (
    data.Split(np.ones((count, 32, 32, 3), np.uint8), np.zeros(count, np.int64))
    for count in (1_000, 100_000)
)
for split in (small, large):
    before = resident()
    pipeline = data.pipeline(split, 128, 0)
    iterators = [iter(pipeline) for _ in range(3)]
    for iterator in iterators:
        next(iterator)
copies = (resident() - before) / large.images.nbytes

digits = data.load("digits")
alone = data.pipeline(digits.train, 32, 0)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
shared = strategy.experimental_distribute_dataset(alone)
sizes, equal = set(), True
for _, expected, got in zip(range(50), alone, shared):
    for whole, parts in zip(expected, got):
        halves = strategy.experimental_local_results(parts)
        sizes |= {len(half) for half in halves}
        equal &= np.array_equal(np.concatenate(halves), whole)
print(json.dumps({"copies": copies, "sizes": list(sizes), "equal": equal}))
"""


@pytest.fixture(scope="module")
def fresh(repository):
    """What a process finds whose memory is its own and which has two devices."""
    run = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_the_images_are_copied_once(fresh):
    assert fresh["copies"] < 1.5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_replicas_share_the_batch_of_one(fresh):
    assert fresh["sizes"] == [16]
    assert fresh["equal"]
