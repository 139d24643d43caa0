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
_data.string("dataset", f"data set: {', '.join(data.NAMES)}", default="digits")
_data.string(
    "data_dir",
    "directory of the data: TFDS's data directory; for tiny_imagenet and cinic10 also the archive "
    "or the unpacked folder; for folder the one that has train/CLASS/ and test/CLASS/",
)
_data.string(
    "image_size",
    "height and width in pixels, such as 224, or HEIGHTxWIDTH; images are resized to it (default: "
    "original size)",
)
_data.enum(
    "resize",
    "how images get this size: crop (scale to cover, crop the center), pad (scale to fit, add "
    "black bars) or stretch (default: crop)",
    enum_values=list(data.RESIZES),
)
_data.float("train_fraction", "fraction of the training images to use, per class", default=1.0)
_data.integer(
    "train_images_per_class", "number of training images per class (default: all)", lower_bound=1
)
_data.float(
    "validation_fraction",
    "fraction of the training images to hold out for validation (default: the data set's own "
    "validation split, or 0.1)",
)
_data.string(
    "unlabeled_dir",
    "folder of unlabeled images to add to the training set; the teacher labels them",
)
_data.string(
    "augment",
    "augmentation: standard (pad, random crop, flip), cutout or randaugment (on top of standard), "
    "photo (random resized crop, flip), or none; photo,trivialaugment (or randaugment), "
    "photo,erasing and photo,trivialaugment,erasing do more",
    default="standard",
)
_data.bool("flip", "random horizontal flips (default: by data set)")
_data.integer(
    "data_seed",
    "seed of splits, shuffling, augmentation and mixing",
    default=0,
    lower_bound=0,
    upper_bound=2**63 - 1,
)
_data.bool("skip_bad_images", "skip and list images that can't be read", default=False)

_teacher = FlagGroup("teacher")
_teacher.string(
    "teacher",
    "zoo model, FILE.keras, FILE.onnx or keras.applications:NAME; separate several with commas to "
    "average their predictions (default: by data set)",
)
_teacher.string(
    "teacher_weights",
    "weights of the teacher: .keras, .weights.h5 (.h5 for applications), a PyTorch checkpoint, or "
    "imagenet, which is fine-tuned on the data; one per teacher, separated by commas, empty for "
    "none (default: zoo models are trained; applications have imagenet)",
)
_teacher.string(
    "teacher_normalization",
    "pixel normalization that --teacher_weights or FILE.onnx expect: dataset, imagenet, cifar10, "
    "cifar100, none (pixels in [0, 1]), raw (pixels in [0, 255]), or six numbers (means, then "
    "standard deviations, of pixels in [0, 1]) (default: dataset; for an ONNX file raw, unless it "
    "takes channels first, as PyTorch's exports do: these need the flag)",
)
_teacher.string(
    "teacher_classes",
    "text file with the teacher's class names, one per line in output order, if they differ from "
    "the data set's; one file for all teachers, or one per teacher",
)
_teacher.enum(
    "teacher_outputs",
    "what the teacher returns (default: detected from a Keras model's last layer, or by running an "
    "ONNX file)",
    enum_values=["logits", "probabilities"],
)
_teacher.enum(
    "teacher_dtype",
    "precision of the teacher's forward pass (default: the model's own)",
    enum_values=list(DTYPES),
)
_teacher.string("teacher_dir", "directory of trained teachers", default="teachers")
_teacher.integer(
    "teacher_epochs",
    "epochs to train a teacher for (default: by data set)",
    lower_bound=1,
    upper_bound=MOST_EPOCHS,
)

_student = FlagGroup("student")
_student.string(
    "student",
    "zoo model, keras.applications:NAME, or FILE.keras to start from (default: by data set)",
)
_student.string(
    "student_weights", "weights to start from, as for --teacher_weights (default: random)"
)
_student.string(
    "student_normalization",
    "pixel normalization that --student_weights expect, as for --teacher_normalization",
)

_method = FlagGroup("method")
_method.enum(
    "method",
    "stkd (mixed images, teacher and labels), kd (no mixing), mixup (no teacher), ce (neither), or "
    "a published method; sets the defaults of mixing, temperature and loss weights",
    default="stkd",
    enum_values=list(recipes.METHODS),
)
_method.float("temperature", "temperature of the soft loss (default: by method)")
_method.float("soft_weight", "weight of the soft loss (default: by method)")
_method.float(
    "label_weight", "weight of the cross-entropy with the mixed labels (default: by method)"
)
_method.enum(
    "mixing",
    "how to mix images; mixup,cutmix draws one of the two for each sample (default: by method)",
    enum_values=list(recipes.MIXINGS),
)
_method.float(
    "mixup_alpha",
    "concentration of the Dirichlet distribution of mixing weights (default: by method)",
)
_method.float("mixup_probability", "fraction of the samples to mix (default: 1)")
_method.integer("num_images", "images per mixture (default: 2)")
_method.integer(
    "mixing_epochs",
    "epochs after which mixing stops (default: never)",
    lower_bound=0,
    upper_bound=MOST_EPOCHS,
)
_method.float("method_weight", "weight of a published method's loss term (default: as published)")
_method.integer(
    "pretraining_epochs",
    "epochs of the pretraining stage of ft, ab and fsp (default: an eighth of --epochs)",
    lower_bound=0,
    upper_bound=MOST_EPOCHS,
)

_training = FlagGroup("training")
_training.integer(
    "epochs", "training epochs (default: by data set)", lower_bound=1, upper_bound=MOST_EPOCHS
)
_training.integer(
    "batch_size", "images per step over all devices (default: by data set)", lower_bound=1
)
_training.enum(
    "recipe",
    "defaults of the flags below, --epochs, --batch_size, --temperature and the loss weights: "
    "scratch, or finetune for pretrained weights (default: finetune with "
    "--student_weights=imagenet, otherwise scratch)",
    enum_values=list(recipes.RECIPES),
)
_training.enum(
    "optimizer",
    "sgd (Nesterov momentum 0.9) or adamw (default: by recipe)",
    enum_values=list(recipes.OPTIMIZERS),
)
_training.float(
    "learning_rate",
    "peak learning rate of a linear warm-up and cosine decay (default: by recipe and optimizer)",
)
_training.float(
    "backbone_learning_rate",
    "peak learning rate of all but the student's last layer with weights (default: by recipe and "
    "optimizer; without one, --learning_rate)",
)
_training.integer(
    "freeze_epochs",
    "epochs at the start in which only the student's last layer with weights trains (default: 0)",
    lower_bound=0,
    upper_bound=MOST_EPOCHS,
)
_training.bool(
    "freeze_batch_norm",
    "keep the student's batch normalization as it is (default: by recipe)",
)
_training.float(
    "weight_decay",
    "weight decay of kernels: L2 in the gradient, decoupled with adamw (default: by recipe and "
    "optimizer)",
)
_training.float(
    "clip_norm", "upper bound on the norm of the gradient; 0 for none (default: by recipe)"
)
_training.float(
    "ema",
    "momentum of a moving average of the weights, which is validated and saved; lower in short "
    "trainings, 0 for none (default: by recipe)",
)
_training.float(
    "label_smoothing",
    "share of each label that is spread evenly over all classes (default: by recipe)",
)
_training.enum(
    "calibrate",
    "temperature: after training, fit a temperature on the validation images, which exported files "
    "apply; none",
    default="temperature",
    enum_values=["temperature", "none"],
)
_training.integer(
    "seed", "seed of the student's initial weights", default=0, lower_bound=0, upper_bound=2**32 - 1
)
_training.string(
    "replay",
    "file with the teacher's recorded logits; recorded first if absent, then reused for other "
    "students, seeds, temperatures and loss weights (default: an ONNX teacher is recorded for this "
    "run alone)",
)

_run = FlagGroup("run")
_run.string("run_dir", "directory of the run (default: runs/DATASET-TEACHER-STUDENT-METHOD-sSEED)")
_run.bool("overwrite", "replace an existing run", default=False)
_run.integer(
    "backup_steps",
    "steps between checkpoints within an epoch; every epoch ends with one, too",
    default=experiment.BACKUP_STEPS,
    lower_bound=1,
)
_run.integer("validation_freq", "epochs between validations", default=1, lower_bound=1)
_run.bool(
    "dry_run",
    "check all flags and files, time a few steps, estimate the duration, and write nothing",
    default=False,
)

_devices = FlagGroup("devices")
_devices.enum(
    "distribute",
    "mirrored: one replica per device; auto: mirrored with two or more GPUs; multi_worker: one "
    "replica per device on every machine of a cluster described by TF_CONFIG or Slurm; none: one "
    "device",
    default="auto",
    enum_values=list(STRATEGIES),
)
_devices.enum(
    "mixed_precision",
    "Keras dtype policy of the student, unless it is loaded from FILE.keras",
    default="none",
    enum_values=["none", "mixed_float16", "mixed_bfloat16"],
)
_devices.bool("deterministic", "bit-identical results on the same machine (slower)", default=False)

_advanced = FlagGroup("advanced")
_advanced.integer(
    "steps_per_execution",
    "steps per call of the compiled function, on one device (default: about a second's)",
    lower_bound=1,
)
_advanced.enum(
    "soft_target",
    "virtual: the teacher's logits on the mixed image; mixed: the mixture of its probabilities on "
    "the original images (default: virtual)",
    enum_values=list(SOFT_TARGETS),
)
_advanced.bool(
    "mixing_per_batch",
    "draw one mixing weight per batch instead of one per sample (default: false)",
)
_advanced.list(
    "student_features",
    "student layers that give a published method's features, as stage1=LAYER,stage2=LAYER "
    "(default: layers with the features' names, as in zoo models)",
)
_advanced.list("teacher_features", "as --student_features, for the teacher")
_advanced.float(
    "memory_limit",
    "GB of decoded images to keep in memory; larger data sets are streamed",
    default=data.DEFAULT_MEMORY_LIMIT / 1e9,
)
_advanced.integer(
    "logical_devices",
    "split the CPU into this many devices, to test --distribute=mirrored",
    default=0,
    lower_bound=0,
    upper_bound=MOST_LOGICAL_DEVICES,
)
_advanced.integer(
    "histogram_freq",
    "epochs between weight histograms in TensorBoard (0: none)",
    default=0,
    lower_bound=0,
)
_advanced.integer(
    "profile_steps",
    "steps to profile for TensorBoard, from the third on (0: none)",
    default=0,
    lower_bound=0,
)
