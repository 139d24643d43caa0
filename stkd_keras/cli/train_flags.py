"""The flags of train.py, in groups."""

from stkd_keras import data, experiment, recipes
from stkd_keras.cli.app import FlagGroup
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

_data = FlagGroup("data")
_data.string("dataset", "digits", f"data set: {', '.join(data.NAMES)}")
_data.string(
    "data_dir",
    None,
    "directory of the data: TFDS's data directory; for tiny_imagenet and cinic10 also the archive "
    "or the unpacked folder; for folder the one that has train/CLASS/ and test/CLASS/",
)
_data.integer(
    "image_size",
    None,
    "height and width in pixels; images are resized and cropped to it (default: original size)",
    lower_bound=1,
)
_data.float("train_fraction", 1.0, "fraction of the training images to use, per class")
_data.integer(
    "train_images_per_class",
    None,
    "number of training images per class (default: all)",
    lower_bound=1,
)
_data.float(
    "validation_fraction",
    None,
    "fraction of the training images to hold out for validation (default: the data set's own "
    "validation split, or 0.1)",
)
_data.string(
    "unlabeled_dir",
    None,
    "folder of unlabeled images to add to the training set; the teacher labels them",
)
_data.enum(
    "augment",
    "standard",
    list(data.AUGMENTATIONS),
    "augmentation: standard (pad, random crop, flip), cutout or randaugment (on top of standard), "
    "or none",
)
_data.bool("flip", None, "random horizontal flips (default: by data set)")
_data.integer(
    "data_seed",
    0,
    "seed of splits, shuffling, augmentation and mixing",
    lower_bound=0,
    upper_bound=2**63 - 1,
)
_data.bool("skip_bad_images", False, "skip and list images that can't be read")

_teacher = FlagGroup("teacher")
_teacher.string(
    "teacher",
    None,
    "zoo model, FILE.keras or keras.applications:NAME; separate several with commas to average "
    "their predictions (default: by data set)",
)
_teacher.string(
    "teacher_weights",
    None,
    "weights of the teacher: .keras, .weights.h5 (.h5 for applications), or a PyTorch checkpoint; "
    "one per teacher, separated by commas, empty for none (default: zoo models are trained and "
    "kept in --teacher_dir; applications use their ImageNet weights)",
)
_teacher.string(
    "teacher_normalization",
    None,
    "pixel normalization that --teacher_weights expect: dataset, imagenet, cifar10, cifar100, "
    "none, or six numbers (means, then standard deviations, of pixels in [0, 1]) (default: "
    "dataset)",
)
_teacher.string(
    "teacher_classes",
    None,
    "text file with the teacher's class names, one per line in output order, if they differ from "
    "the data set's; one file for all teachers, or one per teacher",
)
_teacher.enum(
    "teacher_dtype",
    None,
    list(DTYPES),
    "precision of the teacher's forward pass (default: the model's own)",
)
_teacher.string("teacher_dir", "teachers", "directory of trained teachers")
_teacher.integer(
    "teacher_epochs",
    None,
    "epochs to train a teacher for (default: by data set)",
    lower_bound=1,
    upper_bound=MOST_EPOCHS,
)

_student = FlagGroup("student")
_student.string(
    "student",
    None,
    "zoo model, keras.applications:NAME, or FILE.keras to start from (default: by data set)",
)
_student.string(
    "student_weights", None, "weights to start from, as for --teacher_weights (default: random)"
)
_student.string(
    "student_normalization",
    None,
    "pixel normalization that --student_weights expect, as for --teacher_normalization",
)

_method = FlagGroup("method")
_method.enum(
    "method",
    "stkd",
    list(recipes.METHODS),
    "stkd (mixed images, teacher and labels), kd (no mixing), mixup (no teacher), ce (neither), or "
    "a published method; sets the defaults of mixing, temperature and loss weights",
)
_method.float("temperature", None, "temperature of the soft loss (default: by method)")
_method.float("soft_weight", None, "weight of the soft loss (default: by method)")
_method.float(
    "label_weight", None, "weight of the cross-entropy with the mixed labels (default: by method)"
)
_method.enum("mixing", None, list(recipes.MIXINGS), "how to mix images (default: by method)")
_method.float(
    "mixup_alpha",
    None,
    "concentration of the Dirichlet distribution of mixing weights (default: by method)",
)
_method.float("mixup_probability", None, "fraction of the samples to mix (default: 1)")
_method.integer("num_images", None, "images per mixture (default: 2)")
_method.integer(
    "mixing_epochs",
    None,
    "epochs after which mixing stops (default: never)",
    lower_bound=0,
    upper_bound=MOST_EPOCHS,
)
_method.float(
    "method_weight", None, "weight of a published method's loss term (default: as published)"
)
_method.integer(
    "pretraining_epochs",
    None,
    "epochs of the pretraining stage of ft, ab and fsp (default: an eighth of --epochs)",
    lower_bound=0,
    upper_bound=MOST_EPOCHS,
)

_training = FlagGroup("training")
_training.integer(
    "epochs", None, "training epochs (default: by data set)", lower_bound=1, upper_bound=MOST_EPOCHS
)
_training.integer(
    "batch_size", None, "images per step over all devices (default: by data set)", lower_bound=1
)
_training.enum("optimizer", "sgd", list(recipes.OPTIMIZERS), "sgd (Nesterov momentum 0.9) or adamw")
_training.float(
    "learning_rate",
    None,
    "peak learning rate of a linear warm-up and cosine decay (default: 0.1, or 0.001 with adamw)",
)
_training.float(
    "weight_decay",
    None,
    "weight decay of kernels: L2 in the gradient, decoupled with adamw (default: 5e-4, or 0.05 "
    "with adamw)",
)
_training.integer(
    "seed", 0, "seed of the student's initial weights", lower_bound=0, upper_bound=2**32 - 1
)
_training.string(
    "replay",
    None,
    "file with the teacher's recorded logits; recorded first if absent, then reused for other "
    "students, seeds, temperatures and loss weights",
)

_run = FlagGroup("run")
_run.string(
    "run_dir", None, "directory of the run (default: runs/DATASET-TEACHER-STUDENT-METHOD-sSEED)"
)
_run.bool("overwrite", False, "replace an existing run")
_run.integer(
    "backup_steps",
    experiment.BACKUP_STEPS,
    "steps between checkpoints within an epoch; every epoch ends with one, too",
    lower_bound=1,
)
_run.integer("validation_freq", 1, "epochs between validations", lower_bound=1)
_run.bool(
    "dry_run",
    False,
    "check all flags and files, time a few steps, estimate the duration, and write nothing",
)

_devices = FlagGroup("devices")
_devices.enum(
    "distribute",
    "auto",
    list(STRATEGIES),
    "mirrored: one replica per device; auto: mirrored with two or more GPUs; multi_worker: one "
    "replica per device on every machine of a cluster described by TF_CONFIG or Slurm; none: one "
    "device",
)
_devices.enum(
    "mixed_precision",
    "none",
    ["none", "mixed_float16", "mixed_bfloat16"],
    "Keras dtype policy of the student, unless it is loaded from FILE.keras",
)
_devices.bool("deterministic", False, "bit-identical results on the same machine (slower)")

_advanced = FlagGroup("advanced")
_advanced.integer(
    "steps_per_execution",
    1,
    "steps per call of the compiled function, on one device",
    lower_bound=1,
)
_advanced.enum(
    "soft_target",
    None,
    list(SOFT_TARGETS),
    "virtual: the teacher's logits on the mixed image; mixed: the mixture of its probabilities on "
    "the original images (default: virtual)",
)
_advanced.bool(
    "mixing_per_batch",
    None,
    "draw one mixing weight per batch instead of one per sample (default: false)",
)
_advanced.list(
    "student_features",
    None,
    "student layers that give a published method's features, as stage1=LAYER,stage2=LAYER "
    "(default: layers with the features' names, as in zoo models)",
)
_advanced.list("teacher_features", None, "as --student_features, for the teacher")
_advanced.float(
    "memory_limit",
    data.DEFAULT_MEMORY_LIMIT / 1e9,
    "GB of decoded images to keep in memory; larger data sets are streamed",
)
_advanced.integer(
    "logical_devices",
    0,
    "split the CPU into this many devices, to test --distribute=mirrored",
    lower_bound=0,
    upper_bound=MOST_LOGICAL_DEVICES,
)
_advanced.integer(
    "histogram_freq", 0, "epochs between weight histograms in TensorBoard (0: none)", lower_bound=0
)
_advanced.integer(
    "profile_steps",
    0,
    "steps to profile for TensorBoard, from the third on (0: none)",
    lower_bound=0,
)
