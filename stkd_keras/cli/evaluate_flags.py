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
    "model",
    None,
    "run directory, .keras file, or with --weights a zoo model or keras.applications:NAME",
)
_model.string(
    "weights",
    None,
    "weights of the model: .weights.h5 (.h5 for applications), or a PyTorch checkpoint",
)
_model.string(
    "normalization",
    None,
    "pixel normalization that --weights expect: dataset, imagenet, cifar10, cifar100, none, or six "
    "numbers (means, then standard deviations, of pixels in [0, 1]) (default: dataset)",
)

_teacher = FlagGroup("teacher")
_teacher.string(
    "teacher",
    None,
    "teacher to compare with, as in train.py: .keras files, zoo models with --teacher_weights, or "
    "keras.applications:NAME (default: the run's)",
)
_teacher.string("teacher_weights", None, "weights of the teacher, as in train.py")
_teacher.string(
    "teacher_normalization",
    None,
    "pixel normalization that --teacher_weights expect, as for --normalization",
)
_teacher.string("teacher_classes", None, "text file with the teacher's class names, as in train.py")

_data = FlagGroup("data")
_data.string("dataset", None, f"data set: {', '.join(data.NAMES)} (default: the run's, or digits)")
_data.string(
    "data_dir",
    None,
    "directory of the data, as in train.py (default: the run's, or TFDS's data directory)",
)
_data.integer(
    "image_size",
    None,
    "height and width in pixels, as in train.py (default: the run's)",
    lower_bound=1,
)
_data.bool(
    "skip_bad_images", None, "skip and list images that can't be read (default: as in the run)"
)
_data.float(
    "memory_limit",
    data.DEFAULT_MEMORY_LIMIT / 1e9,
    "GB of decoded images to keep in memory; larger data sets are streamed",
)

_output = FlagGroup("output")
_output.bool("json", False, "print JSON, with fractions instead of percent")
_output.bool(
    "report", False, "write a self-contained HTML report, report.html in the run directory"
)
_output.string("report_file", None, "file of --report; needed if --model isn't a run directory")
_output.list(
    "compare", None, "directories of other runs on the same data, to compare with in the report"
)
_output.list(
    "export",
    None,
    f"formats to export to; each file is run on the test images: {', '.join(export.FORMATS)}",
)
_output.string(
    "output_dir", None, "directory of the exported files (default: export/ in the run directory)"
)
