"""The flags of evaluate.py, in groups."""

from stkd_keras import data, export
from stkd_keras.cli.app import FlagGroup

GROUPS = ("model", "teacher", "data", "output")
# The flags that --help shows.
COMMON = (
    "model", "weights", "normalization", "dataset", "data_dir", "teacher", "report", "compare",
    "export", "json",
)  # fmt: skip

_model = FlagGroup("model")
_model.string(
    "model", "run directory, .keras file, or with --weights a zoo model or keras.applications:NAME"
)
_model.string(
    "weights", "weights of the model: .weights.h5 (.h5 for applications), or a PyTorch checkpoint"
)
_model.string(
    "normalization",
    "pixel normalization that --weights expect: dataset, imagenet, cifar10, cifar100, none (pixels "
    "in [0, 1]), raw (pixels in [0, 255]), or six numbers (means, then standard deviations, of "
    "pixels in [0, 1]) (default: dataset)",
)

_teacher = FlagGroup("teacher")
_teacher.string(
    "teacher",
    "teacher to compare with, as in train.py: .keras or .onnx files, zoo models with "
    "--teacher_weights, or keras.applications:NAME (default: the run's)",
)
_teacher.string("teacher_weights", "weights of the teacher, as in train.py")
_teacher.string(
    "teacher_normalization",
    "pixel normalization that --teacher_weights or an ONNX file expect, as in train.py",
)
_teacher.enum(
    "teacher_outputs",
    "what the teacher returns, as in train.py",
    enum_values=["logits", "probabilities"],
)
_teacher.string("teacher_classes", "text file with the teacher's class names, as in train.py")

_data = FlagGroup("data")
_data.string("dataset", f"data set: {', '.join(data.NAMES)} (default: the run's, or digits)")
_data.string(
    "data_dir",
    "directory of the data, as in train.py (default: the run's, or TFDS's data directory)",
)
_data.string("image_size", "pixels, as in train.py (default: the run's)")
_data.enum(
    "resize",
    "how images get this size, as in train.py (default: as in the run)",
    enum_values=list(data.RESIZES),
)
_data.bool("skip_bad_images", "skip and list images that can't be read (default: as in the run)")
_data.float(
    "memory_limit",
    "GB of decoded images to keep in memory; larger data sets are streamed",
    default=data.DEFAULT_MEMORY_LIMIT / 1e9,
)

_output = FlagGroup("output")
_output.bool("json", "print JSON, with fractions instead of percent", default=False)
_output.bool(
    "report", "write a self-contained HTML report, report.html in the run directory", default=False
)
_output.string("report_file", "file of --report; needed if --model isn't a run directory")
_output.list("compare", "directories of other runs on the same data, to compare with in the report")
_output.list(
    "export",
    f"formats to export to; each file is run on the test images: {', '.join(export.FORMATS)}",
)
_output.string(
    "output_dir", "directory of the exported files (default: export/ in the run directory)"
)
