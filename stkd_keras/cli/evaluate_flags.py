"""The flags of evaluate.py, in groups."""

from absl import flags

from stkd_keras import data, export

GROUPS = ("model", "teacher", "data", "output")
# The flags that --help shows.
COMMON = (
    "model", "weights", "normalization", "dataset", "data_dir", "teacher", "report", "compare",
    "export", "json",
)  # fmt: skip

# Model
MODEL = flags.DEFINE_string(
    "model",
    None,
    "run directory, .keras file, or with --weights a zoo model or keras.applications:NAME",
    module_name="model",
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "weights of the model: .weights.h5 (.h5 for applications), or a PyTorch checkpoint",
    module_name="model",
)
NORMALIZATION = flags.DEFINE_string(
    "normalization",
    None,
    "pixel normalization that --weights expect: dataset, imagenet, cifar10, cifar100, none, or six "
    "numbers (means, then standard deviations, of pixels in [0, 1]) (default: dataset)",
    module_name="model",
)

# Teacher
TEACHER = flags.DEFINE_string(
    "teacher",
    None,
    "teacher to compare with, as in train.py: .keras files, zoo models with --teacher_weights, or "
    "keras.applications:NAME (default: the run's)",
    module_name="teacher",
)
TEACHER_WEIGHTS = flags.DEFINE_string(
    "teacher_weights", None, "weights of the teacher, as in train.py", module_name="teacher"
)
TEACHER_NORMALIZATION = flags.DEFINE_string(
    "teacher_normalization",
    None,
    "pixel normalization that --teacher_weights expect, as for --normalization",
    module_name="teacher",
)
TEACHER_CLASSES = flags.DEFINE_string(
    "teacher_classes",
    None,
    "text file with the teacher's class names, as in train.py",
    module_name="teacher",
)

# Data
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    f"data set: {', '.join(data.NAMES)} (default: the run's, or digits)",
    module_name="data",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "directory of the data, as in train.py (default: the run's, or TFDS's data directory)",
    module_name="data",
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "height and width in pixels, as in train.py (default: the run's)",
    lower_bound=1,
    module_name="data",
)
SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images",
    None,
    "skip and list images that can't be read (default: as in the run)",
    module_name="data",
)
MEMORY_LIMIT = flags.DEFINE_float(
    "memory_limit",
    data.DEFAULT_MEMORY_LIMIT / 1e9,
    "GB of decoded images to keep in memory; larger data sets are streamed",
    module_name="data",
)

# Output
JSON = flags.DEFINE_bool(
    "json", False, "print JSON, with fractions instead of percent", module_name="output"
)
REPORT = flags.DEFINE_bool(
    "report",
    False,
    "write a self-contained HTML report, report.html in the run directory",
    module_name="output",
)
REPORT_FILE = flags.DEFINE_string(
    "report_file",
    None,
    "file of --report; needed if --model isn't a run directory",
    module_name="output",
)
COMPARE = flags.DEFINE_list(
    "compare",
    None,
    "directories of other runs on the same data, to compare with in the report",
    module_name="output",
)
EXPORT = flags.DEFINE_list(
    "export",
    None,
    f"formats to export to, and to test on the test images: {', '.join(export.FORMATS)}",
    module_name="output",
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "directory of the exported files (default: export/ in the run directory)",
    module_name="output",
)
