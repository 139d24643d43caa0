"""Teachers: parsing the flags that name them, loading them, and training them."""

from models.teachers.loading import fit_images, load_teachers
from models.teachers.onnx_teacher import load_onnx
from models.teachers.sources import TeacherSource, parse_teachers
from models.teachers.training import train_teacher

__all__ = [
    "TeacherSource", "fit_images", "load_onnx", "load_teachers", "parse_teachers", "train_teacher",
]  # fmt: skip
