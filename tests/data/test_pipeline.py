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
from stkd_keras.data.pipeline import _batch_starts
from stkd_keras.errors import InputError


def numbered(count, num_classes=10) -> data.Split:
    """Images whose four pixels encode their index."""
    images = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2, 1)
    return data.Split(images, np.arange(count) % num_classes)


def dataset_of(split) -> data.Dataset:
    names = tuple(map(str, range(10)))
    return data.Dataset("made", "1.0.0", names, (0.5,), (0.5,), False, split, split)


def recorded(folder, count, num_files=5, buffer_size=7) -> data.RecordSplit:
    """`numbered` images and labels in TFRecord files of different lengths."""
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
    """A function from a count to numbered images, in memory or streamed."""
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


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@settings(deadline=None)
@given(count=st.integers(1, 1000), batch_size=st.integers(1, 400))
def test_only_the_last_two_batches_are_smaller_and_by_half_at_most(count, batch_size):
    batch_size = min(batch_size, count)
    *full, last = np.diff(_batch_starts(count, batch_size))
    assert sum(full) + last == count
    assert len(full) + 1 == -(-count // batch_size)
    assert set(full[:-1]) <= {batch_size}
    if full:
        assert batch_size >= full[-1] >= last >= full[-1] - 1
        assert last >= batch_size // 2


class TestPipeline:
    @pytest.mark.parametrize(("count", "sizes"), [(61, [12, 12, 12, 12, 7, 6]), (5, [5])])
    def test_an_epoch_has_every_image_once(self, make_split, count, sizes):
        split = make_split(count)
        assert data.steps_per_epoch(split, sizes[0]) == len(sizes)
        batches = take(data.pipeline(dataset_of(split), split, sizes[0], 3, "none"), 2 * len(sizes))
        assert [len(images) for images, _ in batches] == 2 * sizes
        for images, labels in batches:
            np.testing.assert_array_equal(labels, indices(images) % 10)
        for epoch in (batches[: len(sizes)], batches[len(sizes) :]):
            order = np.concatenate([indices(images) for images, _ in epoch])
            assert sorted(order) == list(range(count))

    # The last batch of 2 images has none for two of the workers.
    @pytest.mark.parametrize(("count", "batch_size", "workers"), [(61, 12, 3), (17, 4, 4)])
    def test_workers_share_an_epoch_without_overlap(self, make_split, count, batch_size, workers):
        split = make_split(count)
        shards = [
            epochs(split, batch_size, 1, 2, shard_index=index, num_shards=workers)
            for index in range(workers)
        ]
        for parts in zip(*shards, strict=True):
            assert sorted(np.concatenate(parts)) == list(range(count))

    @pytest.mark.parametrize("augment", ["standard", "randaugment"])
    def test_the_shards_of_two_workers_are_the_pieces_of_the_batch(self, digits, augment):
        def batches(**share):
            return take(data.pipeline(digits, "train", 33, 5, augment, start_step=40, **share), 8)

        halves = [batches(shard_index=index, num_shards=2) for index in range(2)]
        together = [
            tuple(np.concatenate(parts) for parts in zip(*pair, strict=True))
            for pair in zip(*halves, strict=True)
        ]
        assert_same(together, batches())

    @pytest.mark.parametrize("start", [1, 44, 100])
    def test_start_step_continues_the_pipeline(self, digits, start):
        def batches(start_step, count):
            return take(data.pipeline(digits, "train", 32, 5, start_step=start_step), count)

        assert data.steps_per_epoch(digits.train, 32) == 45
        assert_same(batches(0, start + 3)[start:], batches(start, 3))

    @pytest.mark.parametrize("start", [1, 5, 12])
    def test_start_step_continues_a_pipeline_of_records(self, tmp_path, start):
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
            orders.append(np.concatenate(epochs(split, 10, 0, 1)))
        np.testing.assert_array_equal(*orders)

    def test_records_are_shuffled_within_and_beyond_the_buffer(self, tmp_path):
        split = recorded(tmp_path, 500, num_files=5, buffer_size=50)
        first, second = epochs(split, 100, 0, 2)
        assert (first == second).mean() < 0.05
        assert (np.diff(first) == 1).mean() < 0.1
        # Files are read in turn, so a batch has images of all of them.
        assert all(len(set(batch // 100)) == 5 for batch in np.split(first, 5)[:3])

    def test_parts_of_records_have_only_their_images(self, tmp_path):
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

    def test_iterating_again_yields_the_same(self, digits):
        pipeline = data.pipeline(digits, "train", 32, 5)
        assert_same(take(pipeline, 47), take(pipeline, 47))

    def test_epochs_and_seeds_differ(self):
        split = numbered(1000)
        orders = epochs(split, 100, 0, 3) + epochs(split, 100, 1, 1)
        for i, first in enumerate(orders):
            for second in orders[:i]:
                assert (first == second).mean() < 0.01

    def test_augmentation_differs_between_epochs_and_from_the_order(self):
        split = data.Split(np.full((8, 16, 16, 1), 255, np.uint8), np.arange(8))
        batches = [x for x, _ in take(data.pipeline(dataset_of(split), split, 8, 0), 20)]
        assert len({x.tobytes() for x in batches}) == 20

    def test_the_order_is_uniform(self):
        # The number of images of a class in a batch has the hypergeometric variance. With images
        # sorted by class, TensorFlow's index_shuffle has 0.8 of it.
        count, batch_size = 50_000, 125
        split = numbered(count)
        orders = np.concatenate(epochs(split, batch_size, 0, 4)).reshape(-1, batch_size)
        in_batch = np.stack([(orders * 10 // count == c).sum(1) for c in range(10)])
        expected = batch_size * 0.1 * 0.9 * (count - batch_size) / (count - 1)
        assert 0.93 < in_batch.var() / expected < 1.07

    def test_is_infinite_with_a_static_batch_size_if_all_are_equal(self, digits):
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
    @pytest.mark.parametrize(("batch_size", "batches"), [(3, 4), (5, 2), (64, 1)])
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
from stkd_keras.data.pipeline import _batch_starts

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
    """Measurements of a fresh process with two devices."""
    run = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_the_images_are_not_copied(fresh):
    assert fresh["copies"] < 0.3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_replicas_split_the_batch(fresh):
    assert fresh["sizes"] == [16]
    assert fresh["equal"]
