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


def dataset_of(split) -> data.Dataset:
    names = tuple(map(str, range(10)))
    return data.Dataset("made", "1.0.0", names, (0.5,), (0.5,), False, split, split)


def recorded(folder, count, num_files=5, buffer_size=7) -> data.RecordSplit:
    """The same images and labels, in TFRecord files of different lengths."""
    split = numbered(count)
    parts = np.array_split(np.arange(count), num_files)
    for number, rows in enumerate(parts):
        with tf.io.TFRecordWriter(str(folder / f"{number}.tfrecord")) as writer:
            for row in rows:
                writer.write(split.images[row].tobytes() + bytes([split.labels[row]]))

    def parse(record):
        values = tf.io.decode_raw(record, tf.uint8)
        return tf.reshape(values[:4], (2, 2, 1)), tf.cast(values[4], tf.int64)

    return data.RecordSplit(
        files=[str(folder / f"{number}.tfrecord") for number in range(num_files)],
        lengths=[len(rows) for rows in parts],
        parse=parse,
        image_shape=(2, 2, 1),
        all_labels=split.labels,
        selected=np.ones(count, bool),
        buffer_size=buffer_size,
    )


@pytest.fixture(params=["memory", "records"])
def make_split(request, tmp_path):
    """A function from a count to the numbered images, in memory or streamed."""
    if request.param == "memory":
        return numbered
    return lambda count: recorded(tmp_path, count)


def indices(images) -> np.ndarray:
    return np.asarray(images).astype(np.uint8).reshape(-1, 4).view(np.uint32)[:, 0]


def take(pipeline, count):
    return [(x.numpy(), y.numpy()) for x, y in pipeline.take(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for pair in zip(first, second, strict=True):
        for a, b in zip(*pair, strict=True):
            np.testing.assert_array_equal(a, b)


def epochs(split, batch_size, data_seed, count, **options) -> list[np.ndarray]:
    steps = data.steps_per_epoch(split, batch_size)
    pipeline = data.pipeline(dataset_of(split), split, batch_size, data_seed, "none", **options)
    batches = take(pipeline, steps * count)
    for images, labels in batches:
        np.testing.assert_array_equal(labels, indices(images) % 10)
    return np.split(np.concatenate([indices(images) for images, _ in batches]), count)


def assert_shared(split, batch_size) -> None:
    """That an epoch's batches are full, but for the last two, which are nearly equal."""
    steps = data.steps_per_epoch(split, batch_size)
    assert steps == -(-len(split) // batch_size)
    batches = data.pipeline(dataset_of(split), split, batch_size, 0, "none")
    sizes = [len(images) for images, _ in take(batches, 2 * steps)]
    assert sizes[:steps] == sizes[steps:]
    *full, last = sizes[:steps]
    assert sum(full) + last == len(split)
    assert set(full[:-1]) <= {batch_size}
    if full:
        assert batch_size >= full[-1] >= last >= full[-1] - 1
        assert last >= batch_size // 2


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


class TestPipeline:
    @settings(max_examples=8, deadline=None)
    @given(count=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 2**40))
    def test_each_image_exactly_once_an_epoch(self, count, batch_size, seed):
        split = numbered(count)
        batch_size = min(batch_size, count)
        for order in epochs(split, batch_size, seed, 2):
            assert sorted(order) == list(range(count))

    @pytest.mark.parametrize(("count", "batch_size"), [(60, 12), (61, 12), (13, 12), (5, 5)])
    def test_each_recorded_image_exactly_once_an_epoch(self, tmp_path, count, batch_size):
        for order in epochs(recorded(tmp_path, count), batch_size, 3, 2):
            assert sorted(order) == list(range(count))

    @settings(max_examples=30, deadline=None)
    @given(count=st.integers(1, 100), batch_size=st.integers(1, 40))
    def test_only_the_last_two_batches_are_smaller_and_by_half_at_most(self, count, batch_size):
        batch_size = min(batch_size, count)
        assert_shared(numbered(count), batch_size)

    @pytest.mark.parametrize(("count", "batch_size"), [(60, 12), (61, 12), (71, 12), (13, 12)])
    def test_so_are_those_of_recorded_images(self, tmp_path, count, batch_size):
        assert_shared(recorded(tmp_path, count), batch_size)

    @pytest.mark.parametrize(("count", "num_shards"), [(60, 2), (61, 3), (65, 5), (47, 7)])
    def test_workers_share_every_epoch_without_overlap_or_loss(self, make_split, count, num_shards):
        split = make_split(count)
        shards = [
            epochs(split, 12, 1, 2, shard_index=index, num_shards=num_shards)
            for index in range(num_shards)
        ]
        for parts in zip(*shards, strict=True):
            assert sorted(np.concatenate(parts)) == list(range(count))

    @pytest.mark.parametrize("augment", data.AUGMENTATIONS)
    def test_the_shares_of_two_workers_are_the_batch_cut_in_two(self, digits, augment):
        def batches(**share):
            return take(data.pipeline(digits, "train", 33, 5, augment, **share), 90)

        halves = [batches(shard_index=index, num_shards=2) for index in range(2)]
        together = [
            tuple(np.concatenate(parts) for parts in zip(*pair, strict=True))
            for pair in zip(*halves, strict=True)
        ]
        assert_same(together, batches())

    @pytest.mark.parametrize("start", [1, 43, 44, 45, 100])
    def test_starting_at_a_step_is_going_there(self, digits, start):
        def batches(start_step, count):
            return take(data.pipeline(digits, "train", 32, 5, start_step=start_step), count)

        assert data.steps_per_epoch(digits.train, 32) == 45
        assert_same(batches(0, start + 3)[start:], batches(start, 3))

    @pytest.mark.parametrize("start", [1, 4, 5, 6, 12])
    def test_starting_at_a_step_of_records_is_going_there(self, tmp_path, start):
        split = recorded(tmp_path, 45)

        def batches(start_step, count):
            made = data.pipeline(dataset_of(split), split, 10, 5, start_step=start_step)
            return take(made, count)

        assert_same(batches(0, start + 7)[start:], batches(start, 7))

    def test_the_order_does_not_depend_on_the_seed_of_the_weights(self, make_split):
        split = make_split(50)
        orders = []
        for seed in (1, 2):
            keras.utils.set_random_seed(seed)
            orders.append(np.concatenate(epochs(split, 10, 0, 2)))
        np.testing.assert_array_equal(*orders)

    def test_records_are_shuffled_within_and_beyond_the_buffer(self, tmp_path):
        split = recorded(tmp_path, 500, num_files=5, buffer_size=50)
        first, second = epochs(split, 100, 0, 2)
        assert (first == second).mean() < 0.05
        assert (np.diff(first) == 1).mean() < 0.1
        # Files are read by turns, so that a batch has images of all of them.
        assert all(len(set(batch // 100)) == 5 for batch in np.split(first, 5)[:3])

    def test_parts_of_records_give_their_images_only(self, tmp_path):
        split = recorded(tmp_path, 100)
        dataset = dataset_of(split)
        train, validation = data.split_train(dataset, 0.2, 0.5)
        assert np.bincount(validation.labels).tolist() == [2] * 10
        assert np.bincount(train.labels).tolist() == [4] * 10
        seen = [
            np.concatenate([indices(x) for x, _ in data.evaluation_pipeline(part, 7)])
            for part in (train, validation)
        ]
        assert not set(seen[0]) & set(seen[1])
        np.testing.assert_array_equal(seen[0] % 10, train.labels)
        (order,) = epochs(train, 7, 0, 1)
        assert sorted(order) == sorted(seen[0])

    def test_iterating_again_gives_the_same(self, digits):
        pipeline = data.pipeline(digits, "train", 32, 5)
        assert_same(take(pipeline, 60), take(pipeline, 60))

    def test_epochs_and_seeds_differ(self):
        split = numbered(1000)
        orders = epochs(split, 10, 0, 3) + epochs(split, 10, 1, 1)
        for i, first in enumerate(orders):
            for second in orders[:i]:
                assert (first == second).mean() < 0.01

    def test_augmentation_differs_between_epochs_and_from_the_order(self):
        split = data.Split(np.full((8, 16, 16, 1), 255, np.uint8), np.arange(8))
        batches = [x for x, _ in take(data.pipeline(dataset_of(split), split, 8, 0), 20)]
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

    def test_is_infinite_and_static_where_all_batches_are_full(self, digits):
        pipeline = data.pipeline(digits, "test", 36, 0)
        assert pipeline.cardinality() == tf.data.INFINITE_CARDINALITY
        images, labels = pipeline.element_spec
        assert images == tf.TensorSpec((36, 8, 8, 1), tf.float32)
        assert labels == tf.TensorSpec((36,), tf.int64)
        images, _ = data.pipeline(digits, "test", 32, 0).element_spec
        assert images == tf.TensorSpec((None, 8, 8, 1), tf.float32)

    def test_pixels_keep_their_range(self, digits):
        images = np.concatenate([x for x, _ in take(data.pipeline(digits, "train", 32, 0), 10)])
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
            data.pipeline(digits, "train", 32, 0, augment="none"),
            steps_per_epoch=data.steps_per_epoch(digits.train, 32),
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
            ({"batch_size": 5, "shard_index": 2, "num_shards": 2}, "from 0 to 1"),
            ({"batch_size": 5, "num_shards": 6}, "at least one image for each"),
            ({"batch_size": 5, "split": "trian"}, "train"),
            ({"batch_size": 5, "split": "validation"}, "split of made"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(InputError, match=message) as error:
            data.pipeline(
                dataset_of(numbered(10)), **{"split": "train", "data_seed": 0, **arguments}
            )
        assert "\n" not in str(error.value)


class TestEvaluationPipeline:
    @pytest.mark.parametrize(("batch_size", "batches"), [(1, 10), (3, 4), (5, 2), (10, 1), (64, 1)])
    def test_all_images_in_order(self, make_split, batch_size, batches):
        expected = numbered(10)
        pipeline = data.evaluation_pipeline(make_split(10), batch_size)
        assert pipeline.cardinality() == batches
        images, labels = (np.concatenate(parts) for parts in zip(*take(pipeline, -1), strict=True))
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels, expected.labels)

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

def ones(count):
    images = data.aligned_empty((count, 32, 32, 3))
    images[:] = 1
    return data.from_arrays(images, np.arange(count) % 10, images[:10], np.arange(10))

small, large = ones(1_000), ones(100_000)
for dataset in (small, large):
    before = resident()
    train, validation = data.split_train(dataset, 0.1)
    pipelines = [data.pipeline(dataset, train, 128, 0), data.evaluation_pipeline(validation, 100)]
    iterators = [iter(pipeline) for pipeline in pipelines * 2]
    for iterator in iterators:
        next(iterator)
copies = (resident() - before) / large.train.images.nbytes

digits = data.load("digits")
alone = data.pipeline(digits, "train", 32, 0)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
shared = strategy.experimental_distribute_dataset(alone)
sizes, equal = set(), True
for _, expected, got in zip(range(43), alone, shared):
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
def test_the_images_are_not_copied(fresh):
    assert fresh["copies"] < 0.3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_replicas_share_the_batch_of_one(fresh):
    assert fresh["sizes"] == [16]
    assert fresh["equal"]
