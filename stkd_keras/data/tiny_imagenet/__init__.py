"""Tiny-ImageNet-200, for `tfds.load("tiny_imagenet")`."""

from stkd_keras.data.tiny_imagenet.tiny_imagenet_dataset_builder import TinyImagenet, layout

__all__ = ["TinyImagenet", "layout"]
