"""Folders of images, and small copies of CINIC-10 and Tiny-ImageNet."""

import numpy as np
import PIL.Image
import tensorflow as tf

CINIC_CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def write_images(folder, count, seed=0, mode="RGB", ending="png", size=(20, 16)):
    """Writes images of noise, which depends on the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([seed, *folder.name.encode()])
    for number in range(count):
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(pixels).convert(mode).save(folder / f"{seed}-{number}.{ending}")


def noise(seed, shape) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def cinic10_files() -> dict[str, bytes]:
    """A CINIC-10 of two images per class in train, one in valid and a grayscale one in test."""
    files = {"README.md": b"", "train/cat/Thumbs.db": b"no image"}
    for label, name in enumerate(CINIC_CLASSES):
        for place, (folder, channels) in enumerate(
            [("train", 3), ("train", 3), ("valid", 3), ("test", 1)]
        ):
            pixels = noise(10 * label + place, (32, 32, channels))
            files[f"{folder}/{name}/cifar10-{place}.png"] = tf.io.encode_png(pixels).numpy()
    return files


def tiny_imagenet_files() -> dict[str, bytes]:
    """A Tiny-ImageNet-200 of one image per class in train and one in val."""
    wnids = [f"n{7 * number:08}" for number in range(200)]
    image = tf.io.encode_jpeg(noise(0, (64, 64, 3))).numpy()
    files = {f"train/{wnid}/images/{wnid}_0.JPEG": image for wnid in wnids}
    files |= {f"val/images/val_{number}.JPEG": image for number in range(200)}
    files["wnids.txt"] = "\n".join(reversed(wnids)).encode()
    files["words.txt"] = "".join(f"{wnid}\tname of {wnid}, other\n" for wnid in wnids).encode()
    lines = (f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9\n" for number, wnid in enumerate(wnids))
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files
