"""Readers of image data: folders, archives, image files, TFRecords and TFDS."""
