"""The published methods, and features to call them with."""

import numpy as np
import tensorflow as tf

from stkd_keras.methods import METHODS

NUM_CLASSES = 5
NUM_IMAGES = 40
NAMES = sorted(METHODS)
# Maps as (height, width, channels).
STUDENT = {"stem": (8, 8, 4), "stage1": (8, 8, 4), "stage2": (4, 4, 6), "stage3": (2, 2, 8)}
TEACHER = {"stem": (8, 8, 4), "stage1": (8, 8, 5), "stage2": (4, 4, 8), "stage3": (2, 2, 10)}


def make(method, num_images=NUM_IMAGES, **options):
    """Returns a small instance of a method's term."""
    if method == "crd":
        image_labels = np.arange(num_images) % NUM_CLASSES
        options = {
            "num_images": num_images,
            "image_labels": image_labels,
            "num_negatives": 16,
            "embedding_size": 12,
            **options,
        }
    return METHODS[method].term(**{**METHODS[method].options, **options})


def random_features(seed, batch=6, shapes=STUDENT, dimension=8):
    """Returns random features of a model by name."""
    rng = np.random.default_rng(seed)
    features = {}
    for name, shape in shapes.items():
        maps = rng.normal(size=(batch, *shape)).astype("float32")
        features[name] = np.maximum(maps, 0)
        if name != "stem":
            features[f"{name}_preactivation"] = maps
    features["embedding"] = rng.normal(size=(batch, dimension)).astype("float32")
    features["logits"] = 3 * rng.normal(size=(batch, NUM_CLASSES)).astype("float32")
    return features


def inputs_of(name, batch=6):
    """Returns (student, teacher, labels), of different shapes if the method allows it."""
    teacher_shapes = STUDENT if name == "fsp" else TEACHER
    labels = np.eye(NUM_CLASSES, dtype="float32")[np.arange(batch) % NUM_CLASSES]
    student = random_features(0, batch)
    return student, random_features(1, batch, teacher_shapes, dimension=10), labels


def call(term, student, teacher, labels, **options):
    """Returns the mean loss of a term."""
    if term.needs_index:
        options.setdefault("index", np.arange(len(labels)))
    student, teacher = (
        {name: tf.convert_to_tensor(values) for name, values in each.items()}
        for each in (student, teacher)
    )
    return tf.reduce_mean(term(student, teacher, tf.convert_to_tensor(labels), **options))
