"""Distils a small classifier from a big one."""

# isort: off
import quiet_tensorflow

# isort: on
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import keras
import tensorflow as tf
from absl import flags

import models
import stkd_keras
from models import teachers
from models.loading import check_normalization, is_whole_model
from models.teachers.sources import slug
from models.teachers.training import teachers_to_train
from stkd_keras import data, experiment, recipes
from stkd_keras.classifiers.features import with_features
from stkd_keras.cli import app
from stkd_keras.distillation.checks import SOFT_TARGETS, check_settings, check_soft_target
from stkd_keras.distribution.cluster import detect_lost_workers
from stkd_keras.distribution.strategy import (
    MOST_LOGICAL_DEVICES,
    STRATEGIES,
    check_batch_size,
    largest_batch,
    make_strategy,
    refuse_what_keras_cannot_do,
)
from stkd_keras.distribution.workers import is_chief
from stkd_keras.errors import InputError
from stkd_keras.files.write_errors import check_folder
from stkd_keras.methods import DistillationTerm
from stkd_keras.methods.base import feature_names
from stkd_keras.teacher.member import DTYPES
from stkd_keras.teacher.recording import check_recording
from stkd_keras.training import timing
from stkd_keras.training.run_directory import RunDirectory

# So that the number of steps is an int64, however many images there are.
MOST_EPOCHS = 10**9

DESCRIPTION = """
python train.py --dataset=cifar10 --teacher=resnet110

Distils a small classifier (the student) from a big one (the teacher): takes or trains the
teacher, trains the student on mixtures of images that the teacher answers, scores it on the test
split, and leaves config.json, history.csv, TensorBoard events, student.keras and metrics.json in
the run's directory. The same command resumes a run that was interrupted.
"""

DATASET = flags.DEFINE_string("dataset", "digits", f"data set: {', '.join(data.NAMES)}")
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "where TFDS keeps its data (default: TFDS's own folder); of tiny_imagenet and cinic10 also the "
    "archive or the unpacked folder; of folder the one with train/CLASS/ and test/CLASS/",
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "height and width that images are scaled and cropped to (default: their own)",
    lower_bound=1,
)
SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images", False, "leave out images that can't be read, and list them"
)
MEMORY_LIMIT = flags.DEFINE_float(
    "memory_limit",
    data.DEFAULT_MEMORY_LIMIT / 1e9,
    "GB of decoded images; larger data sets are read while they are used",
)
UNLABELED_DIR = flags.DEFINE_string(
    "unlabeled_dir", None, "a folder of images without labels, for the teacher to answer"
)
AUGMENT = flags.DEFINE_enum(
    "augment",
    "standard",
    list(data.AUGMENTATIONS),
    "standard (pad, random crop, flip), and with it cutout or randaugment; or none",
)
FLIP = flags.DEFINE_bool("flip", None, "whether images may be mirrored (default: by data set)")
TEACHER = flags.DEFINE_string(
    "teacher",
    None,
    "a model of the zoo, FILE.keras or keras.applications:NAME; several, with commas between them, "
    "count as one (default: by data set)",
)
TEACHER_WEIGHTS = flags.DEFINE_string(
    "teacher_weights",
    None,
    "the teacher's weights: .keras, .weights.h5 (of an application also .h5), or any other file, "
    "which is PyTorch's; of several teachers as many, with nothing between the commas for none "
    "(default: a model of the zoo is trained, and kept under --teacher_dir; an application has "
    "those of ImageNet)",
)
TEACHER_NORMALIZATION = flags.DEFINE_string(
    "teacher_normalization",
    None,
    "how the pixels of --teacher_weights were normalised: dataset (the default), imagenet, "
    "cifar10, cifar100, none, or six numbers (means, then standard deviations, in units of [0, 1])",
)
TEACHER_CLASSES = flags.DEFINE_string(
    "teacher_classes",
    None,
    "a text file with the teacher's classes, one a line in its order, where they aren't the "
    "data's; of several teachers one for all, or as many as for --teacher_weights",
)
TEACHER_DTYPE = flags.DEFINE_enum(
    "teacher_dtype",
    None,
    list(DTYPES),
    "the precision that the teacher answers in (default: its own, float32 for all but .keras files "
    "of another)",
)
TEACHER_DIR = flags.DEFINE_string("teacher_dir", "teachers", "where trained teachers are kept")
TEACHER_EPOCHS = flags.DEFINE_integer(
    "teacher_epochs",
    None,
    "epochs of the teacher's training (default: by data set)",
    lower_bound=1,
    upper_bound=MOST_EPOCHS,
)
STUDENT = flags.DEFINE_string(
    "student",
    None,
    "a model of the zoo, keras.applications:NAME, or FILE.keras to start from (default: by data "
    "set)",
)
STUDENT_WEIGHTS = flags.DEFINE_string(
    "student_weights", None, "weights to start from, as --teacher_weights (default: fresh ones)"
)
STUDENT_NORMALIZATION = flags.DEFINE_string(
    "student_normalization", None, "as --teacher_normalization, of --student_weights"
)
REPLAY = flags.DEFINE_string(
    "replay",
    None,
    "a file with the teacher's answers in this training, recorded if absent: for several students, "
    "seeds, temperatures and loss weights",
)
METHOD = flags.DEFINE_enum(
    "method",
    "stkd",
    list(recipes.METHODS),
    "stkd (virtual samples, teacher and labels), kd (no mixing), mixup (no teacher), ce (neither), "
    "or a published one, with the weights of its benchmark; it sets the defaults of mixing, "
    "temperature and weights",
)
METHOD_WEIGHT = flags.DEFINE_float(
    "method_weight", None, "weight of the term of a published method (default: its benchmark's)"
)
PRETRAINING_EPOCHS = flags.DEFINE_integer(
    "pretraining_epochs",
    None,
    "epochs before the others, of ft, ab and fsp (default: an eighth of --epochs, as in the "
    "benchmark)",
    lower_bound=0,
    upper_bound=MOST_EPOCHS,
)
STUDENT_FEATURES = flags.DEFINE_list(
    "student_features",
    None,
    "which layers give the features that a published method needs, as stage1=LAYER,stage2=LAYER "
    "(default: those of these names, as in the zoo's models)",
)
TEACHER_FEATURES = flags.DEFINE_list("teacher_features", None, "as --student_features")
EPOCHS = flags.DEFINE_integer(
    "epochs",
    None,
    "epochs (default: by data set)",
    lower_bound=1,
    upper_bound=MOST_EPOCHS,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "images a step, over all devices (default: by data set)", lower_bound=1
)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer", "sgd", list(recipes.OPTIMIZERS), "sgd (with Nesterov momentum 0.9) or adamw"
)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "the highest: linear warm-up, cosine decay (default: by data set; 0.001 with adamw)",
)
WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay",
    None,
    "of kernels: L2 added to the gradient, decoupled with adamw (default: by data set; 0.05 with "
    "adamw)",
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "temperature of the soft loss (default: by method, of most 4)"
)
SOFT_WEIGHT = flags.DEFINE_float(
    "soft_weight", None, "weight of the soft loss (default: by method)"
)
LABEL_WEIGHT = flags.DEFINE_float(
    "label_weight", None, "weight of the cross-entropy with the mixed label (default: by method)"
)
SOFT_TARGET = flags.DEFINE_enum(
    "soft_target",
    None,
    list(SOFT_TARGETS),
    "virtual: the teacher's answer on the virtual sample; mixed: the mixture of its answers on the "
    "clean images (default: virtual)",
)
MIXING = flags.DEFINE_enum(
    "mixing", None, list(recipes.MIXINGS), "how images are mixed (default: by method)"
)
MIXING_PER_BATCH = flags.DEFINE_bool(
    "mixing_per_batch", None, "one mixing weight for all samples of a batch (default: false)"
)
MIXUP_ALPHA = flags.DEFINE_float(
    "mixup_alpha", None, "concentration of the mixing weights (default: by method)"
)
MIXUP_PROBABILITY = flags.DEFINE_float(
    "mixup_probability", None, "share of the samples that are mixed (default: by method)"
)
NUM_IMAGES = flags.DEFINE_integer("num_images", None, "images a mixture (default: 2)")
MIXING_EPOCHS = flags.DEFINE_integer(
    "mixing_epochs",
    None,
    "epochs after which mixing stops (default: never)",
    lower_bound=0,
    upper_bound=MOST_EPOCHS,
)
SEED = flags.DEFINE_integer(
    "seed", 0, "seed of the student's initial weights", lower_bound=0, upper_bound=2**32 - 1
)
DATA_SEED = flags.DEFINE_integer(
    "data_seed",
    0,
    "seed of splits, order, augmentation and mixing",
    lower_bound=0,
    upper_bound=2**63 - 1,
)
TRAIN_FRACTION = flags.DEFINE_float(
    "train_fraction", 1.0, "share of the training images to use, balanced over the classes"
)
TRAIN_IMAGES_PER_CLASS = flags.DEFINE_integer(
    "train_images_per_class", None, "the same as a number of images of each class", lower_bound=1
)
VALIDATION_FRACTION = flags.DEFINE_float(
    "validation_fraction",
    None,
    "share of the training images to watch instead of training on "
    "(default: the data set's own validation split, or 0.1)",
)
RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "the run's directory (default: runs/DATASET-TEACHER-STUDENT-METHOD-sSEED)"
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the run in the run's directory")
DISTRIBUTE = flags.DEFINE_enum(
    "distribute",
    "auto",
    list(STRATEGIES),
    "mirrored: a replica on each device; auto: so where there are several GPUs; multi_worker: so "
    "on every machine of a cluster that TF_CONFIG or Slurm describes",
)
LOGICAL_DEVICES = flags.DEFINE_integer(
    "logical_devices",
    0,
    "divide the CPU into so many devices, to try --distribute=mirrored",
    lower_bound=0,
    upper_bound=MOST_LOGICAL_DEVICES,
)
MIXED_PRECISION = flags.DEFINE_enum(
    "mixed_precision",
    "none",
    ["none", "mixed_float16", "mixed_bfloat16"],
    "Keras's policy for a student that isn't FILE.keras",
)
STEPS_PER_EXECUTION = flags.DEFINE_integer(
    "steps_per_execution", 1, "steps a call of the compiled function (one device)", lower_bound=1
)
BACKUP_STEPS = flags.DEFINE_integer(
    "backup_steps",
    experiment.BACKUP_STEPS,
    "steps between two backups within an epoch; there is one after each epoch, too",
    lower_bound=1,
)
VALIDATION_FREQ = flags.DEFINE_integer(
    "validation_freq",
    1,
    "epochs from one look at the validation images, and picture of virtual samples, to the next",
    lower_bound=1,
)
HISTOGRAM_FREQ = flags.DEFINE_integer(
    "histogram_freq",
    0,
    "epochs from one set of histograms of the weights in TensorBoard to the next (default: none)",
    lower_bound=0,
)
PROFILE_STEPS = flags.DEFINE_integer(
    "profile_steps",
    0,
    "steps that TensorFlow's profiler looks at, from the third on, for TensorBoard (default: none)",
    lower_bound=0,
)
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "two runs give the same bits on the same machine (slower)"
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "check everything, time a few steps, say how long the training will take, and write nothing",
)


@detect_lost_workers()
def main() -> None:
    """Runs the command."""
    recipe = recipe_from_flags()
    method = recipes.method_settings(
        METHOD.value,
        **{name: flags.FLAGS[name].value for name in recipes.SETTINGS},
    )
    if method["pretraining_epochs"] is None:
        method["pretraining_epochs"] = recipes.default_pretraining_epochs(
            METHOD.value, recipe["epochs"]
        )
    mixing = recipes.make_mixing(method)
    sources = check_flags(recipe, method, mixing)
    settings = {**recipe, **method, **flags_that_matter(recipe)}
    run = RunDirectory(RUN_DIR.value or default_run_dir(recipe, sources))
    run.check(settings, OVERWRITE.value)

    strategy = get_strategy(recipe["batch_size"])
    dataset, labelled_split, train_split, validation_split = get_images()
    description = experiment.describe(dataset, train_split, validation_split)
    print(experiment.format_description(description))
    batch_size = BATCH_SIZE.value or largest_batch(recipe["batch_size"], len(train_split), strategy)
    # Before the teacher too: it sees whether there are enough images for a batch.
    steps = data.steps_per_epoch(train_split, batch_size)
    if STEPS_PER_EXECUTION.value > steps:
        raise InputError(
            f"--steps_per_execution={STEPS_PER_EXECUTION.value} is more than the {steps} steps of "
            "an epoch: choose fewer"
        )
    settings |= {
        "images": data.content_hash(train_split),
        **data.left_over(train_split, batch_size),
        "replicas": strategy.num_replicas_in_sync,
    }
    run.check(settings, OVERWRITE.value)
    with strategy.scope():
        # Before the teacher: what doesn't fit shall not be found after hours of its training.
        student = get_student(dataset, recipe["student"])
        arguments = recipes.distiller_arguments(
            METHOD.value, method, train_split, steps, DATA_SEED.value
        )
        check_features(student, arguments["terms"])
        samples = {name: arguments[name] for name in ("mixing", "mixing_steps", "data_seed")}
        # A mixture of answers is made of those on the images as they are.
        is_mixed = method["soft_target"] == "mixed"
        answered = {**samples, "mixing": None, "mixing_steps": None} if is_mixed else samples
        check_replay(answered, dataset, train_split, batch_size, recipe["epochs"] * steps)
    needed = recipes.needs_teacher(METHOD.value, method)
    if DRY_RUN.value and needed and has_teachers_to_train(dataset, recipe, sources):
        return
    teacher, sources = get_teacher(dataset, recipe, sources, needed, strategy)
    with strategy.scope():
        distiller = stkd_keras.SimilarityTransferDistiller(
            student,
            answering(teacher, answered, dataset, train_split, batch_size, recipe["epochs"] * steps)
            if needed
            else None,
            student_features=feature_layers(STUDENT_FEATURES),
            teacher_features=feature_layers(TEACHER_FEATURES),
            **arguments,
        )
    if DRY_RUN.value:
        say_how_long(
            distiller, teacher, dataset, (labelled_split, train_split, validation_split), recipe,
            batch_size,
        )  # fmt: skip
        return
    recorded = [dataclasses.asdict(source) for source in sources]
    settings["teacher_weights"] = teacher.fingerprint() if needed and teacher else None
    experiment.start(
        run,
        {
            "settings": settings,
            # It only says where the same images are.
            "data_dir": DATA_DIR.value and os.path.abspath(DATA_DIR.value),
            "teachers": recorded,
            "data": description,
            **provenance(),
        },
        strategy,
        OVERWRITE.value,
    )
    experiment.train(
        distiller,
        dataset,
        train_split,
        validation_split,
        run,
        epochs=recipe["epochs"],
        batch_size=batch_size,
        learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        optimizer=recipe["optimizer"],
        augment=AUGMENT.value,
        steps_per_execution=STEPS_PER_EXECUTION.value,
        backup_steps=BACKUP_STEPS.value,
        validation_freq=VALIDATION_FREQ.value,
        histogram_freq=HISTOGRAM_FREQ.value,
        profile_steps=PROFILE_STEPS.value,
    )
    if is_chief(strategy):
        score(distiller.student, teacher, dataset, labelled_split, validation_split, run)


def check_flags(
    recipe: dict, method: dict, mixing: stkd_keras.Mixup | stkd_keras.CutMix | None
) -> list[teachers.TeacherSource]:
    """Refuses what can be seen to be wrong before anything is loaded; returns the teachers."""
    weights = method["soft_weight"], method["label_weight"]
    has_term = METHOD.value not in recipes.OWN_METHODS
    check_settings(mixing, None, method["temperature"], *weights, has_terms=has_term)
    check_soft_target(method["soft_target"], mixing)
    feature_layers(STUDENT_FEATURES)
    feature_layers(TEACHER_FEATURES)
    recipes.check_recipe(recipe["learning_rate"], recipe["weight_decay"])
    data.check_split_arguments(
        VALIDATION_FRACTION.value or 0.0,
        TRAIN_FRACTION.value,
        images_per_class=TRAIN_IMAGES_PER_CLASS.value,
    )
    app.bytes_of(MEMORY_LIMIT.value)
    check_combinations(recipe, method)
    if REPLAY.value is not None:
        check_recording(REPLAY.value)
    student = recipe["student"], STUDENT_WEIGHTS.value
    check_normalization("student", STUDENT_NORMALIZATION.value, *student)
    models.check_source(*student)
    sources = teachers.parse_teachers(
        recipe["teacher"],
        TEACHER_WEIGHTS.value,
        TEACHER_NORMALIZATION.value,
        TEACHER_CLASSES.value,
    )
    if recipes.needs_teacher(METHOD.value, method) and not all(
        source.is_trained for source in sources
    ):
        check_folder(f"--teacher_dir={TEACHER_DIR.value}", TEACHER_DIR.value)
    return sources


def check_combinations(recipe: dict, method: dict) -> None:
    """Refuses flags of which one leaves the other nothing to do."""
    if UNLABELED_DIR.value and not recipes.needs_teacher(METHOD.value, method):
        raise InputError(
            "--unlabeled_dir needs a teacher that answers its images, but the soft weight is 0: "
            "choose --method=stkd or --method=kd, or leave it out"
        )
    if REPLAY.value is not None and not recipes.needs_teacher(METHOD.value, method):
        raise InputError(
            "--replay records a teacher's answers, but the soft weight is 0: choose --method=stkd "
            "or --method=kd, or leave it out"
        )
    if REPLAY.value is not None and not recipes.can_replay(METHOD.value, method):
        raise InputError(
            "--replay records the teacher's logits on the samples that are trained on, but "
            f"--method={METHOD.value} needs more of it: leave one of them out"
        )
    for flag in (STUDENT_FEATURES, TEACHER_FEATURES):
        if flag.value and not recipes.needs_features(METHOD.value):
            raise InputError(
                f"--{flag.name} names layers, but --method={METHOD.value} compares no inner "
                "features: leave it out, or choose another method"
            )
    if REPLAY.value is not None and DISTRIBUTE.value == "multi_worker":
        raise InputError(
            "--replay records on one machine, but --distribute is multi_worker: leave one of them "
            "out"
        )
    if LOGICAL_DEVICES.value and DISTRIBUTE.value in ("auto", "none"):
        raise InputError(
            f"--logical_devices={LOGICAL_DEVICES.value} is to try --distribute=mirrored, but that "
            f"is {DISTRIBUTE.value}: leave one of them out"
        )
    if method["num_images"] > recipe["batch_size"]:
        raise InputError(
            f"--num_images={method['num_images']} are mixed from a batch of "
            f"{recipe['batch_size']}: choose fewer, or a larger --batch_size"
        )


def recipe_from_flags() -> dict:
    """The data set's recipe, with the flags that were given in its place."""
    data.check_name(DATASET.value)
    recipe = dataclasses.asdict(recipes.recipe_for(DATASET.value, OPTIMIZER.value))
    given = {name: flags.FLAGS[name].value for name in recipe}
    return {**recipe, **{name: value for name, value in given.items() if value is not None}}


def get_strategy(batch_size: int) -> tf.distribute.Strategy:
    """What the flags say of devices; all but the chief of several workers are silent from here."""
    if DETERMINISTIC.value:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(DISTRIBUTE.value, LOGICAL_DEVICES.value)
    if strategy is None:
        return tf.distribute.get_strategy()
    refuse_what_keras_cannot_do(strategy, None, STEPS_PER_EXECUTION.value, "auto")
    check_batch_size("--batch_size", batch_size, strategy)
    if not is_chief(strategy):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return strategy


def get_images() -> tuple[data.Dataset, data.AnySplit, data.AnySplit, data.AnySplit | None]:
    """The data set, and of it the labelled images, all to train on, and those to watch."""
    dataset = get_dataset()
    labelled_split, validation_split = experiment.split(
        dataset,
        VALIDATION_FRACTION.value,
        TRAIN_FRACTION.value,
        DATA_SEED.value,
        images_per_class=TRAIN_IMAGES_PER_CLASS.value,
    )
    train_split, skipped = with_unlabeled(labelled_split)
    dataset = dataclasses.replace(dataset, skipped=(*dataset.skipped, *skipped))
    app.list_skipped(dataset.skipped)
    return dataset, labelled_split, train_split, validation_split


def get_dataset() -> data.Dataset:
    """The data set that the flags name."""
    dataset = data.load(
        DATASET.value,
        DATA_DIR.value,
        image_size=IMAGE_SIZE.value,
        memory_limit=app.bytes_of(MEMORY_LIMIT.value),
        skip_bad_images=SKIP_BAD_IMAGES.value,
    )
    return dataset if FLIP.value is None else dataclasses.replace(dataset, flip=FLIP.value)


def with_unlabeled(train_split: data.AnySplit) -> tuple[data.AnySplit, list[str]]:
    """The training images, joined by those without labels if there are any; what was left out."""
    if UNLABELED_DIR.value is None:
        return train_split, []
    return data.join_unlabeled(
        train_split,
        UNLABELED_DIR.value,
        memory_limit=app.bytes_of(MEMORY_LIMIT.value),
        skip_bad_images=SKIP_BAD_IMAGES.value,
    )


def get_teacher(
    dataset: data.Dataset,
    recipe: dict,
    sources: list[teachers.TeacherSource],
    needed: bool,
    strategy: tf.distribute.Strategy,
) -> tuple[stkd_keras.FrozenTeacher | None, list[teachers.TeacherSource]]:
    """The teacher, and where it is; none where one would have to be trained and isn't needed."""
    if not needed and not all(source.is_trained for source in sources):
        return None, []
    train = functools.partial(
        teachers.train_teacher,
        dataset=dataset,
        folder=TEACHER_DIR.value,
        epochs=recipe["teacher_epochs"],
        validation_fraction=VALIDATION_FRACTION.value,
        data_seed=DATA_SEED.value,
        provenance=provenance(),
        strategy=strategy,
        backup_steps=BACKUP_STEPS.value,
    )
    return teachers.load_teachers(dataset, sources, train, TEACHER_DTYPE.value, strategy)


def check_features(student: keras.Model, terms: list[DistillationTerm]) -> None:
    """Refuses a student without the features that a method compares."""
    if names := feature_names(terms):
        with_features(student, names, feature_layers(STUDENT_FEATURES), "student")


def feature_layers(flag: flags.FlagHolder) -> dict[str, str]:
    """The layers by the names of the features that a flag says they give."""
    pairs = [entry.partition("=") for entry in flag.value or []]
    for feature, equals, layer in pairs:
        if not (feature and equals and layer):
            raise InputError(
                f"--{flag.name} has {feature + equals + layer!r}, expected FEATURE=LAYER, such as "
                "stage1=conv2_block3_out"
            )
    return {feature: layer for feature, _, layer in pairs}


def get_student(dataset: data.Dataset, source: str) -> keras.Model:
    """The student, from its file or by its name."""
    weights = STUDENT_WEIGHTS.value
    keras.utils.set_random_seed(SEED.value)
    if is_whole_model(source, weights):
        return models.load_for(dataset, source, weights)
    policy = MIXED_PRECISION.value
    keras.config.set_dtype_policy("float32" if policy == "none" else policy)
    student = models.load_for(dataset, source, weights, STUDENT_NORMALIZATION.value)
    keras.config.set_dtype_policy("float32")
    return student


def answering(
    teacher: stkd_keras.FrozenTeacher | None,
    samples: dict,
    dataset: data.Dataset,
    train_split: data.AnySplit,
    batch_size: int,
    steps: int,
) -> stkd_keras.FrozenTeacher | stkd_keras.RecordedTeacher | None:
    """What answers the virtual samples: the teacher itself or, with --replay, its recording."""
    if teacher is None or REPLAY.value is None or DRY_RUN.value:
        return teacher
    batches = data.pipeline(dataset, train_split, batch_size, DATA_SEED.value, AUGMENT.value)
    return stkd_keras.record_teacher(REPLAY.value, teacher, batches, steps=steps, **samples)


def check_replay(
    samples: dict,
    dataset: data.Dataset,
    train_split: data.AnySplit,
    batch_size: int,
    steps: int,
) -> None:
    """Refuses the recording of another training before a teacher is trained for this one."""
    if REPLAY.value is None or not os.path.exists(REPLAY.value):
        return
    recorded = stkd_keras.RecordedTeacher(REPLAY.value)
    recorded.check_distiller(**samples)
    batches = data.pipeline(dataset, train_split, batch_size, DATA_SEED.value, AUGMENT.value)
    recorded.check_steps(steps)
    recorded.attach(batches)


def has_teachers_to_train(
    dataset: data.Dataset, recipe: dict, sources: list[teachers.TeacherSource]
) -> bool:
    """Whether the training would begin with that of a teacher; if so, says for how many epochs."""
    epochs = recipe["teacher_epochs"]
    missing = teachers_to_train(
        dataset, sources, TEACHER_DIR.value, epochs=epochs,
        validation_fraction=VALIDATION_FRACTION.value, data_seed=DATA_SEED.value,
    )  # fmt: skip
    if missing:
        print(f"{', '.join(missing)} would be trained first, for {epochs} epochs: ask again then")
        print(json.dumps({"teacher_untrained": True, "teacher_epochs": epochs}))
    return bool(missing)


def say_how_long(
    distiller: stkd_keras.SimilarityTransferDistiller,
    teacher: stkd_keras.FrozenTeacher | None,
    dataset: data.Dataset,
    splits: tuple[data.AnySplit, data.AnySplit, data.AnySplit | None],
    recipe: dict,
    batch_size: int,
) -> None:
    """Makes a few steps, and says how long the training would take."""
    labelled_split, train_split, validation_split = splits
    looks = 1 + recipe["epochs"] // VALIDATION_FREQ.value
    estimate = timing.time_training(
        distiller, teacher, dataset, train_split, epochs=recipe["epochs"], batch_size=batch_size,
        augment=AUGMENT.value,
        evaluated=len(dataset.test) + len(labelled_split) + looks * len(validation_split or ()),
        started=quiet_tensorflow.STARTED,
    )  # fmt: skip
    timing.say(estimate)


def score(
    student: keras.Model,
    teacher: stkd_keras.FrozenTeacher | None,
    dataset: data.Dataset,
    labelled_split: data.AnySplit,
    validation_split: data.AnySplit | None,
    run: RunDirectory,
) -> None:
    """Scores the student on all that has labels, prints it, and completes the run."""
    splits = {"train": labelled_split}
    if validation_split is not None:
        splits["validation"] = validation_split
    metrics = experiment.evaluate(student, teacher, dataset, splits)
    experiment.complete(run, student, metrics)
    print(f"\n{experiment.format_metrics(metrics)}\nstudent: {run.model}")


def default_run_dir(recipe: dict, sources: list[teachers.TeacherSource]) -> str:
    """runs/DATASET-TEACHER-STUDENT-METHOD-sSEED."""
    dataset = DATASET.value
    if dataset == "folder" and DATA_DIR.value:
        dataset += f"-{pathlib.Path(DATA_DIR.value).resolve().name}"
    teacher = "+".join(slug(source.name) for source in sources)
    student = slug(recipe["student"])
    return f"runs/{slug(dataset)}-{teacher}-{student}-{METHOD.value}-s{SEED.value}"


def flags_that_matter(recipe: dict) -> dict:
    """The flags, beside those of recipe and method, that the result depends on.

    Files may be somewhere else when the run is resumed: their content counts. That of the images
    and the teacher's weights is seen when they are there.
    """
    names = (
        "dataset teacher_normalization teacher_dtype student_normalization method seed "
        "student_features teacher_features data_seed train_fraction train_images_per_class "
        "validation_fraction image_size skip_bad_images augment flip mixed_precision deterministic"
    )
    return {
        **{name: flags.FLAGS[name].value for name in names.split()},
        "teacher": by_content(recipe["teacher"]),
        "teacher_classes": by_content(TEACHER_CLASSES.value),
        "student": by_content(recipe["student"]),
        "student_weights": by_content(STUDENT_WEIGHTS.value),
        "replay": REPLAY.value is not None,
    }


def by_content(names: str | None) -> str | None:
    """Names with commas between them, a file's replaced by a hash of what it holds."""
    if names is None:
        return None
    hashes = []
    for name in names.split(","):
        if os.path.isfile(name):
            with open(name, "rb") as file:
                name = hashlib.file_digest(file, "sha256").hexdigest()
        hashes.append(name)
    return ",".join(hashes)


def provenance() -> dict:
    """What made a run: the command, every flag, versions, the commit."""
    own = flags.FLAGS.flags_by_module_dict()[sys.argv[0]]
    return {
        "command": sys.argv,
        "flags": {flag.name: flag.value for flag in own},
        "versions": {
            "python": sys.version.split()[0],
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "stkd_keras": stkd_keras.__version__,
        },
        "git_commit": git_commit(),
        "device": [device.name for device in tf.config.list_logical_devices()],
    }


def git_commit() -> str | None:
    """The commit that this file is of; None where it isn't in a repository, or git not there."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        git = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return git.stdout.strip() or None


if __name__ == "__main__":
    app.run(main, DESCRIPTION)
