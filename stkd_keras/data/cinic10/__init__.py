"""CINIC-10, for `tfds.load("cinic10")`."""

from stkd_keras.data.cinic10.cinic10_dataset_builder import Cinic10, layout

__all__ = ["Cinic10", "layout"]
