"""Folders of pictures."""

import numpy as np
import PIL.Image

CINIC_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def write_images(folder, count, seed=0, mode="RGB", ending="png", size=(20, 16)):
    """Writes pictures of noise, which a class's name makes brighter."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([seed, *folder.name.encode()])
    for number in range(count):
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(pixels).convert(mode).save(folder / f"{seed}-{number}.{ending}")
