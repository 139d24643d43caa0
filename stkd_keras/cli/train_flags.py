"""The flags of train.py, in groups."""

import functools

from absl import flags

from stkd_keras import data, experiment, recipes
from stkd_keras.distillation.checks import SOFT_TARGETS
from stkd_keras.distribution.strategy import MOST_LOGICAL_DEVICES, STRATEGIES
from stkd_keras.teacher.member import DTYPES

# The number of steps must fit into an int64 for any number of images.
MOST_EPOCHS = 10**9

GROUPS = ("data", "teacher", "student", "method", "training", "run", "devices", "advanced")
# The flags that --help shows.
COMMON = (
    "dataset", "data_dir", "image_size", "teacher", "teacher_weights", "student", "method",
    "epochs", "run_dir", "dry_run",
)  # fmt: skip

_epochs = functools.partial(flags.DEFINE_integer, upper_bound=MOST_EPOCHS)

# Data
DATASET = flags.DEFINE_string(
    "dataset", "digits", f"data set: {', '.join(data.NAMES)}", module_name="data"
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "directory of the data: TFDS's data directory; for tiny_imagenet and cinic10 also the archive "
    "or the unpacked folder; for folder the one that has train/CLASS/ and test/CLASS/",
    module_name="data",
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "height and width in pixels; images are resized and cropped to it (default: original size)",
    lower_bound=1,
    module_name="data",
)
TRAIN_FRACTION = flags.DEFINE_float(
    "train_fraction", 1.0, "fraction of the training images to use, per class", module_name="data"
)
TRAIN_IMAGES_PER_CLASS = flags.DEFINE_integer(
    "train_images_per_class",
    None,
    "number of training images per class (default: all)",
    lower_bound=1,
    module_name="data",
)
VALIDATION_FRACTION = flags.DEFINE_float(
    "validation_fraction",
    None,
    "fraction of the training images to hold out for validation (default: the data set's own "
    "validation split, or 0.1)",
    module_name="data",
)
UNLABELED_DIR = flags.DEFINE_string(
    "unlabeled_dir",
    None,
    "folder of unlabeled images to add to the training set; the teacher labels them",
    module_name="data",
)
AUGMENT = flags.DEFINE_enum(
    "augment",
    "standard",
    list(data.AUGMENTATIONS),
    "augmentation: standard (pad, random crop, flip), cutout or randaugment (on top of standard), "
    "or none",
    module_name="data",
)
FLIP = flags.DEFINE_bool(
    "flip", None, "random horizontal flips (default: by data set)", module_name="data"
)
DATA_SEED = flags.DEFINE_integer(
    "data_seed",
    0,
    "seed of splits, shuffling, augmentation and mixing",
    lower_bound=0,
    upper_bound=2**63 - 1,
    module_name="data",
)
SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images", False, "skip and list images that can't be read", module_name="data"
)

# Teacher
TEACHER = flags.DEFINE_string(
    "teacher",
    None,
    "zoo model, FILE.keras or keras.applications:NAME; separate several with commas to average "
    "their predictions (default: by data set)",
    module_name="teacher",
)
TEACHER_WEIGHTS = flags.DEFINE_string(
    "teacher_weights",
    None,
    "weights of the teacher: .keras, .weights.h5 (.h5 for applications), or a PyTorch checkpoint; "
    "one per teacher, separated by commas, empty for none (default: zoo models are trained and "
    "kept in --teacher_dir; applications use their ImageNet weights)",
    module_name="teacher",
)
TEACHER_NORMALIZATION = flags.DEFINE_string(
    "teacher_normalization",
    None,
    "pixel normalization that --teacher_weights expect: dataset, imagenet, cifar10, cifar100, "
    "none, or six numbers (means, then standard deviations, of pixels in [0, 1]) (default: "
    "dataset)",
    module_name="teacher",
)
TEACHER_CLASSES = flags.DEFINE_string(
    "teacher_classes",
    None,
    "text file with the teacher's class names, one per line in output order, if they differ from "
    "the data set's; one file for all teachers, or one per teacher",
    module_name="teacher",
)
TEACHER_DTYPE = flags.DEFINE_enum(
    "teacher_dtype",
    None,
    list(DTYPES),
    "precision of the teacher's forward pass (default: the model's own)",
    module_name="teacher",
)
TEACHER_DIR = flags.DEFINE_string(
    "teacher_dir", "teachers", "directory of trained teachers", module_name="teacher"
)
TEACHER_EPOCHS = _epochs(
    "teacher_epochs",
    None,
    "epochs to train a teacher for (default: by data set)",
    lower_bound=1,
    module_name="teacher",
)

# Student
STUDENT = flags.DEFINE_string(
    "student",
    None,
    "zoo model, keras.applications:NAME, or FILE.keras to start from (default: by data set)",
    module_name="student",
)
STUDENT_WEIGHTS = flags.DEFINE_string(
    "student_weights",
    None,
    "weights to start from, as for --teacher_weights (default: random)",
    module_name="student",
)
STUDENT_NORMALIZATION = flags.DEFINE_string(
    "student_normalization",
    None,
    "pixel normalization that --student_weights expect, as for --teacher_normalization",
    module_name="student",
)

# Method
METHOD = flags.DEFINE_enum(
    "method",
    "stkd",
    list(recipes.METHODS),
    "stkd (mixed images, teacher and labels), kd (no mixing), mixup (no teacher), ce (neither), or "
    "a published method with its published weights; sets the defaults of the flags in this group",
    module_name="method",
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "temperature of the soft loss (default: by method)", module_name="method"
)
SOFT_WEIGHT = flags.DEFINE_float(
    "soft_weight", None, "weight of the soft loss (default: by method)", module_name="method"
)
LABEL_WEIGHT = flags.DEFINE_float(
    "label_weight",
    None,
    "weight of the cross-entropy with the mixed labels (default: by method)",
    module_name="method",
)
MIXING = flags.DEFINE_enum(
    "mixing",
    None,
    list(recipes.MIXINGS),
    "how to mix images (default: by method)",
    module_name="method",
)
MIXUP_ALPHA = flags.DEFINE_float(
    "mixup_alpha",
    None,
    "concentration of the Dirichlet distribution of mixing weights (default: by method)",
    module_name="method",
)
MIXUP_PROBABILITY = flags.DEFINE_float(
    "mixup_probability", None, "fraction of the samples to mix (default: 1)", module_name="method"
)
NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "images per mixture (default: 2)", module_name="method"
)
MIXING_EPOCHS = _epochs(
    "mixing_epochs",
    None,
    "epochs after which mixing stops (default: never)",
    lower_bound=0,
    module_name="method",
)
METHOD_WEIGHT = flags.DEFINE_float(
    "method_weight",
    None,
    "weight of a published method's loss term (default: as published)",
    module_name="method",
)
PRETRAINING_EPOCHS = _epochs(
    "pretraining_epochs",
    None,
    "epochs of the pretraining stage of ft, ab and fsp (default: an eighth of --epochs)",
    lower_bound=0,
    module_name="method",
)

# Training
EPOCHS = _epochs(
    "epochs", None, "training epochs (default: by data set)", lower_bound=1, module_name="training"
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "images per step over all devices (default: by data set)",
    lower_bound=1,
    module_name="training",
)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer",
    "sgd",
    list(recipes.OPTIMIZERS),
    "sgd (Nesterov momentum 0.9) or adamw",
    module_name="training",
)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "peak learning rate of a linear warm-up and cosine decay (default: 0.1, or 0.001 with adamw)",
    module_name="training",
)
WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay",
    None,
    "weight decay of kernels: L2 in the gradient, decoupled with adamw (default: 5e-4, or 0.05 "
    "with adamw)",
    module_name="training",
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "seed of the student's initial weights",
    lower_bound=0,
    upper_bound=2**32 - 1,
    module_name="training",
)
REPLAY = flags.DEFINE_string(
    "replay",
    None,
    "file with the teacher's recorded logits; recorded first if absent, then reused for other "
    "students, seeds, temperatures and loss weights",
    module_name="training",
)

# Run
RUN_DIR = flags.DEFINE_string(
    "run_dir",
    None,
    "directory of the run (default: runs/DATASET-TEACHER-STUDENT-METHOD-sSEED)",
    module_name="run",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace an existing run", module_name="run")
BACKUP_STEPS = flags.DEFINE_integer(
    "backup_steps",
    experiment.BACKUP_STEPS,
    "steps between checkpoints within an epoch; every epoch ends with one, too",
    lower_bound=1,
    module_name="run",
)
VALIDATION_FREQ = flags.DEFINE_integer(
    "validation_freq", 1, "epochs between validations", lower_bound=1, module_name="run"
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "check all flags and files, time a few steps, estimate the duration, and write nothing",
    module_name="run",
)

# Devices
DISTRIBUTE = flags.DEFINE_enum(
    "distribute",
    "auto",
    list(STRATEGIES),
    "mirrored: one replica per device; auto: mirrored with two or more GPUs; multi_worker: one "
    "replica per device on every machine of a cluster described by TF_CONFIG or Slurm; none: one "
    "device",
    module_name="devices",
)
MIXED_PRECISION = flags.DEFINE_enum(
    "mixed_precision",
    "none",
    ["none", "mixed_float16", "mixed_bfloat16"],
    "Keras dtype policy of the student, unless it is loaded from FILE.keras",
    module_name="devices",
)
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    False,
    "bit-identical results on the same machine (slower)",
    module_name="devices",
)

# Advanced
STEPS_PER_EXECUTION = flags.DEFINE_integer(
    "steps_per_execution",
    1,
    "steps per call of the compiled function, on one device",
    lower_bound=1,
    module_name="advanced",
)
SOFT_TARGET = flags.DEFINE_enum(
    "soft_target",
    None,
    list(SOFT_TARGETS),
    "virtual: the teacher's logits on the mixed image; mixed: the mixture of its probabilities on "
    "the original images (default: virtual)",
    module_name="advanced",
)
MIXING_PER_BATCH = flags.DEFINE_bool(
    "mixing_per_batch",
    None,
    "draw one mixing weight per batch instead of one per sample (default: false)",
    module_name="advanced",
)
STUDENT_FEATURES = flags.DEFINE_list(
    "student_features",
    None,
    "student layers that give a published method's features, as stage1=LAYER,stage2=LAYER "
    "(default: layers with the features' names, as in zoo models)",
    module_name="advanced",
)
TEACHER_FEATURES = flags.DEFINE_list(
    "teacher_features", None, "as --student_features, for the teacher", module_name="advanced"
)
MEMORY_LIMIT = flags.DEFINE_float(
    "memory_limit",
    data.DEFAULT_MEMORY_LIMIT / 1e9,
    "GB of decoded images to keep in memory; larger data sets are streamed",
    module_name="advanced",
)
LOGICAL_DEVICES = flags.DEFINE_integer(
    "logical_devices",
    0,
    "split the CPU into this many devices, to test --distribute=mirrored",
    lower_bound=0,
    upper_bound=MOST_LOGICAL_DEVICES,
    module_name="advanced",
)
HISTOGRAM_FREQ = flags.DEFINE_integer(
    "histogram_freq",
    0,
    "epochs between weight histograms in TensorBoard (0: none)",
    lower_bound=0,
    module_name="advanced",
)
PROFILE_STEPS = flags.DEFINE_integer(
    "profile_steps",
    0,
    "steps to profile for TensorBoard, from the third on (0: none)",
    lower_bound=0,
    module_name="advanced",
)
