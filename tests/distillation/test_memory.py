"""Nothing stays in memory after a training, so that one process can train many students."""

import gc
import threading
import weakref

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from image_folders import write_images

from stkd_keras import (
    SGD,
    FrozenTeacher,
    Mixup,
    RecordedTeacher,
    SimilarityTransferDistiller,
    data,
    record_teacher,
)


def fit(x, y=None, teacher=None, **arguments):
    teacher = teacher or FrozenTeacher(networks.small_convolutional_classifier(2))
    student = networks.small_convolutional_classifier(2)
    distiller = SimilarityTransferDistiller(student, teacher, **{"mixing": Mixup(1.0), **arguments})
    distiller.compile(SGD(0.1))
    distiller.fit(x, y, steps_per_epoch=2, verbose=0)
    return distiller, student, teacher, distiller.optimizer


def of_arrays(_):
    x, y = networks.images(32, 2)
    dataset = data.from_arrays(np.uint8(x), y, np.uint8(x), y)
    batches = data.pipeline(dataset, "train", 16, 0)
    return dataset.train, batches, *fit(batches)


def of_files(folder):
    dataset, batches = files(folder)
    return dataset.train, *fit(batches)


def files(folder):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        write_images(folder / name, 8, size=(8, 8), mode="L")
    dataset = data.load("folder", folder, image_size=8, memory_limit=0)
    batches = data.pipeline(dataset, "train", 8, 0)
    return dataset, batches.map(lambda x, y: (x[..., :1], y))


def of_a_recording(folder):
    _, batches, _, _, teacher, _ = of_arrays(folder)
    path = folder / "recording"
    record_teacher(path, teacher, batches, Mixup(1.0), 0, 2, verbose=False)
    recording = RecordedTeacher(path)
    return recording, *fit(recording.attach(batches), teacher=recording)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return networks.images(8, 2)


def of_a_pydataset(_):
    return fit(Batches())


class Loader:
    def __iter__(self):
        return iter([networks.images(8, 2)] * 2)


def of_an_iterable(_):
    batches = Loader()
    return batches, *fit(batches)


def pool_threads():
    return {each for each in threading.enumerate() if "ThreadPoolExecutor" in each.name}


@pytest.mark.parametrize(
    "train", [of_arrays, of_files, of_a_recording, of_a_pydataset, of_an_iterable]
)
def test_a_training_is_freed(train, tmp_path):
    threads = pool_threads()
    references = [weakref.ref(each) for each in train(tmp_path)]
    keras.backend.clear_session()
    gc.collect()
    alive = [type(reference()).__name__ for reference in references if reference() is not None]
    assert not alive
    for thread in pool_threads() - threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_batches_keep_the_images_they_are_made_of(tmp_path):
    _, batches = files(tmp_path)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    distributed = strategy.experimental_distribute_dataset(batches)
    iterators = [iter(batches), iter(distributed)]
    del _, batches, distributed
    gc.collect()
    for iterator in iterators:
        assert [next(iterator)[0].shape for _ in range(3)] == 3 * [(8, 8, 8, 1)]
