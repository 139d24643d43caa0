import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from stkd_keras import data
from stkd_keras.data.dataset import Joined
from stkd_keras.errors import InputError
from stkd_keras.randomness import ORDER, step_seed


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


def epochs(split, batch_size, data_seed, count) -> list[np.ndarray]:
    """Permutations of a number of images that the batch size divides."""
    pipeline = data.pipeline(dataset_of(split), split, batch_size, data_seed, "none")
    batches = take(pipeline, len(split) // batch_size * count)
    return np.split(np.concatenate([indices(images) for images, _ in batches]), count)


def assert_shards_are_pieces(dataset, batch_size, workers, augment, **options):
    def batches(**shard):
        return take(data.pipeline(dataset, "train", batch_size, 5, augment, **options, **shard), 12)

    shards = [batches(shard_index=index, num_shards=workers) for index in range(workers)]
    together = [
        tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
        for pieces in zip(*shards, strict=True)
    ]
    assert_same(together, batches())


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"),
    [(900, 64, 14), (61, 12, 5), (17, 12, 1), (18, 12, 2), (5, 5, 1)],
)
def test_an_epoch_has_the_nearest_number_of_batches(count, batch_size, steps):
    assert data.steps_per_epoch(numbered(count), batch_size) == steps


class TestPipeline:
    @pytest.mark.parametrize(("count", "batch_size"), [(61, 12), (60, 12), (12, 7), (9, 9), (5, 1)])
    def test_batches_are_pieces_of_one_permutation_after_another(
        self, make_split, count, batch_size
    ):
        split = make_split(count)
        permutations = epochs(split, count, 3, 5)
        for permutation in permutations:
            assert sorted(permutation) == list(range(count))
        stream = np.concatenate(permutations)
        batches = take(
            data.pipeline(dataset_of(split), split, batch_size, 3, "none"), 4 * count // batch_size
        )
        uses = np.zeros(count, int)
        for step, (images, labels) in enumerate(batches):
            expected = stream[step * batch_size : (step + 1) * batch_size]
            np.testing.assert_array_equal(indices(images), expected)
            np.testing.assert_array_equal(labels, expected % 10)
            uses += np.bincount(expected, minlength=count)
            assert np.ptp(uses) <= 1

    def test_permutations_sort_random_keys(self):
        for epoch, permutation in enumerate(epochs(numbered(1000), 100, 7, 3)):
            keys = tf.random.stateless_uniform(
                (1000,), step_seed(7, ORDER, epoch), None, None, tf.int32, alg="philox"
            )
            np.testing.assert_array_equal(permutation, np.argsort(keys, kind="stable"))

    def test_the_shards_of_workers_are_the_pieces_of_the_batch(self, make_split):
        assert_shards_are_pieces(dataset_of(make_split(61)), 12, 3, "none")

    @pytest.mark.parametrize("augment", ["standard", "randaugment"])
    def test_so_are_augmented_shards(self, digits, augment):
        assert_shards_are_pieces(digits, 33, 2, augment, start_step=40)

    # Within a permutation, within a batch of two permutations, and after several of them.
    @pytest.mark.parametrize("start", [1, 4, 5, 14, 45])
    def test_start_step_continues_the_pipeline(self, make_split, start):
        split = make_split(45)

        def batches(start_step, count):
            return take(
                data.pipeline(dataset_of(split), split, 10, 5, start_step=start_step), count
            )

        assert_same(batches(0, start + 7)[start:], batches(start, 7))

    @pytest.mark.parametrize(
        "options", [{"shard_index": 1, "num_shards": 5}, {"start_step": 40}, {"start_step": 45}]
    )
    def test_records_that_are_not_needed_are_not_decoded(self, tmp_path, options):
        split = recorded(tmp_path, 1000)
        decoded = []

        def parse(record):
            (record,) = tf.numpy_function(
                lambda record: decoded.append(record) or [record], [record], [tf.string]
            )
            return split.parse(tf.ensure_shape(record, ()))

        counted = dataclasses.replace(split, parse=parse)
        take(data.pipeline(dataset_of(counted), counted, 20, 0, "none", **options), 5)
        assert 5 * 20 // options.get("num_shards", 1) <= len(decoded) < 400

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
            np.concatenate([indices(x) for x, _ in data.evaluation_pipeline(part, 7, pad=False)])
            for part in (train, validation)
        ]
        assert not set(seen[0]) & set(seen[1])
        np.testing.assert_array_equal(seen[0] % 10, train.labels)
        (order,) = epochs(train, 8, 0, 1)
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

    @pytest.mark.parametrize("kind", ["memory", "records", "joined"])
    def test_is_infinite_with_static_shapes(self, tmp_path, kind):
        split = {
            "memory": lambda: numbered(61),
            "records": lambda: recorded(tmp_path, 61),
            "joined": lambda: Joined(numbered(30), numbered(31)),
        }[kind]()
        pipeline = data.pipeline(dataset_of(split), split, 12, 0, shard_index=2, num_shards=3)
        assert pipeline.cardinality() == tf.data.INFINITE_CARDINALITY
        images, labels = pipeline.element_spec
        assert images == tf.TensorSpec((4, 2, 2, 1), tf.float32)
        assert labels == tf.TensorSpec((4,), tf.int64)

    def test_the_index_is_that_of_the_image(self, digits):
        images, targets = next(iter(data.pipeline(digits, "train", 32, 0, "none", with_index=True)))
        np.testing.assert_array_equal(images, digits.train.images[targets["index"]])
        np.testing.assert_array_equal(targets["labels"], digits.train.labels[targets["index"]])

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
    @pytest.mark.parametrize(
        ("batch_size", "size", "batches"), [(3, 3, 4), (5, 5, 2), (10, 10, 1), (64, 10, 1)]
    )
    def test_all_images_in_order_and_then_padding(self, make_split, batch_size, size, batches):
        expected, missing = numbered(10), batches * size - 10
        pipeline = data.evaluation_pipeline(make_split(10), batch_size)
        assert pipeline.cardinality() == batches
        assert pipeline.element_spec == (
            tf.TensorSpec((size, 2, 2, 1), tf.float32),
            tf.TensorSpec((size,), tf.int64),
            tf.TensorSpec((size,), tf.float32),
        )
        images, labels, weights = (
            np.concatenate(parts) for parts in zip(*pipeline.as_numpy_iterator(), strict=True)
        )
        np.testing.assert_array_equal(images[:10], expected.images)
        np.testing.assert_array_equal(images[10:], np.zeros((missing, 2, 2, 1)))
        np.testing.assert_array_equal(labels, [*expected.labels, *[-1] * missing])
        np.testing.assert_array_equal(weights, [1.0] * 10 + [0.0] * missing)

    def test_without_padding_the_last_batch_is_smaller(self, make_split):
        pipeline = data.evaluation_pipeline(make_split(10), 4, pad=False)
        images, labels = zip(*take(pipeline, -1), strict=True)
        assert [len(each) for each in images] == [4, 4, 2]
        assert images[0].dtype == np.float32
        np.testing.assert_array_equal(np.concatenate(images), numbered(10).images)
        np.testing.assert_array_equal(np.concatenate(labels), numbered(10).labels)

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
for _, expected, got in zip(range(60), alone, shared):
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
