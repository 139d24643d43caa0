"""Reads and checks the flags of train.py."""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from absl import flags

from stkd_keras import data, experiment, recipes
from stkd_keras.cli import loading, train_flags  # noqa: F401
from stkd_keras.distillation.checks import check_settings, check_soft_target
from stkd_keras.distribution import is_chief, largest_batch, make_strategy
from stkd_keras.distribution.strategy import check_batch_size, check_compile_options
from stkd_keras.errors import InputError
from stkd_keras.teacher.recording import check_recording
from stkd_keras.training.settings import RunSettings

FLAGS = flags.FLAGS


class Images(NamedTuple):
    """A data set and its splits."""

    dataset: data.Dataset
    labeled: data.AnySplit
    train: data.AnySplit
    validation: data.AnySplit | None


def settings_from_flags(is_pretrained: Callable[[str, str | None], bool]) -> RunSettings:
    """Returns the run's settings, with all checks that don't need the data or models.

    Args:
        is_pretrained: whether a student with these weights is pretrained, so that the recipe is
            finetune unless --recipe says otherwise.
    """
    data.check_name(FLAGS.dataset)
    values: dict[str, Any] = {
        field.name: FLAGS[field.name].value
        for field in dataclasses.fields(RunSettings)
        if field.default is dataclasses.MISSING
    }
    values["image_size"] = loading.image_size()
    for flag, default in (("resize", "crop"), ("calibrate", "temperature")):
        if values[flag] == default:
            values[flag] = None
    student = FLAGS.student or recipes.recipe_for(FLAGS.dataset).student
    finetunes = is_pretrained(student, FLAGS.student_weights)
    name = FLAGS.recipe or ("finetune" if finetunes else "scratch")
    recipe = recipes.recipe_for(FLAGS.dataset, FLAGS.optimizer, name)
    explicit = {name: values[name] for name in recipes.SETTINGS}
    defaults = dataclasses.asdict(recipe)
    values |= {name: default for name, default in defaults.items() if values[name] is None}
    values |= {name: values[name] or None for name in recipes.OPTIONAL}
    method, epochs = values["method"], values["epochs"]
    values |= recipes.method_settings(method, recipe, **explicit)
    if values["pretraining_epochs"] is None:
        values["pretraining_epochs"] = recipes.default_pretraining_epochs(method, epochs)
    settings = RunSettings(**{**values, "replay": FLAGS.replay is not None})
    if settings.needs_teacher and settings.has_onnx_teacher:
        settings = dataclasses.replace(settings, replay=True)
    _check_values(settings)
    _check_combinations(settings)
    return settings


def features_from_flag(flag: str) -> dict[str, str]:
    """Parses --student_features or --teacher_features into layer names by feature."""
    pairs = [entry.partition("=") for entry in FLAGS[flag].value or []]
    for feature, equals, layer in pairs:
        if not (feature and equals and layer):
            raise InputError(
                f"--{flag} has {feature + equals + layer!r}, expected FEATURE=LAYER, such as "
                "stage1=conv2_block3_out"
            )
    return {feature: layer for feature, _, layer in pairs}


def strategy_from_flags(settings: RunSettings) -> tf.distribute.Strategy:
    """Sets up the devices. All workers but the chief print nothing from now on."""
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(FLAGS.distribute, FLAGS.logical_devices)
    if strategy is None:
        return tf.distribute.get_strategy()
    check_compile_options(strategy, None, FLAGS.steps_per_execution or 1)
    check_batch_size("--batch_size", settings.batch_size, strategy)
    if not is_chief(strategy):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return strategy


def images_from_flags() -> Images:
    """Loads and splits the data set, and adds the unlabeled images."""
    dataset = loading.load_dataset()
    if FLAGS.flip is not None:
        dataset = dataclasses.replace(dataset, flip=FLAGS.flip)
    labeled, validation = experiment.split(
        dataset,
        FLAGS.validation_fraction,
        FLAGS.train_fraction,
        FLAGS.data_seed,
        images_per_class=FLAGS.train_images_per_class,
    )
    train: data.AnySplit = labeled
    skipped: list[str] = []
    if FLAGS.unlabeled_dir is not None:
        train, skipped = data.join_unlabeled(
            labeled,
            FLAGS.unlabeled_dir,
            resize=FLAGS.resize or "crop",
            encoded=loading.is_encoded(FLAGS.augment),
            memory_limit=loading.memory_limit(),
            skip_bad_images=FLAGS.skip_bad_images,
        )
    dataset = dataclasses.replace(dataset, skipped=(*dataset.skipped, *skipped))
    loading.list_skipped(dataset.skipped)
    return Images(dataset, labeled, train, validation)


def batching(
    settings: RunSettings, train_split: data.AnySplit, strategy: tf.distribute.Strategy
) -> tuple[int, int]:
    """Returns the batch size and the number of batches per epoch."""
    batch_size = FLAGS.batch_size or largest_batch(settings.batch_size, len(train_split), strategy)
    steps = data.steps_per_epoch(train_split, batch_size)
    if (FLAGS.steps_per_execution or 1) > steps:
        raise InputError(
            f"--steps_per_execution={FLAGS.steps_per_execution} is more than the {steps} steps of "
            "an epoch: choose fewer"
        )
    return batch_size, steps


def _check_values(settings: RunSettings) -> None:
    mixing = recipes.make_mixing(vars(settings))
    check_settings(
        mixing,
        None,
        settings.temperature,
        settings.soft_weight,
        settings.label_weight,
        settings.label_smoothing or 0.0,
        has_terms=settings.method not in recipes.OWN_METHODS,
    )
    check_soft_target(settings.soft_target, mixing)
    recipes.check_recipe(
        settings.learning_rate,
        settings.weight_decay,
        settings.backbone_learning_rate,
        settings.clip_norm,
        settings.ema,
    )
    recipes.check_freeze(settings.freeze_epochs, settings.epochs, settings.pretraining_epochs)
    data.check_split_arguments(
        settings.validation_fraction or 0.0,
        settings.train_fraction,
        images_per_class=settings.train_images_per_class,
    )
    data.parse_augmentation(settings.augment)
    features_from_flag("student_features")
    features_from_flag("teacher_features")
    loading.memory_limit()
    if FLAGS.replay is not None:
        check_recording(FLAGS.replay)


def _check_combinations(settings: RunSettings) -> None:
    """Rejects combinations in which a flag would have no effect or can't work."""
    for flag, purpose in (("unlabeled_dir", "labels its images"), ("replay", "is recorded")):
        if FLAGS[flag].value is not None and not settings.needs_teacher:
            raise InputError(
                f"--{flag} needs a teacher that {purpose}, but soft_weight is 0: choose "
                "--method=stkd or --method=kd, or leave it out"
            )
    if settings.replay and not settings.can_replay:
        what = "--replay records" if FLAGS.replay is not None else "an ONNX file gives"
        raise InputError(
            f"{what} the teacher's logits only, but --method={settings.method} needs its features: "
            "choose another method or teacher, or leave --replay out"
        )
    for flag in ("student_features", "teacher_features"):
        if FLAGS[flag].value and not recipes.needs_features(settings.method):
            raise InputError(
                f"--{flag} names layers, but --method={settings.method} uses no features of "
                "inner layers: leave it out, or choose another method"
            )
    is_random = settings.student_weights is None and not settings.student.endswith(".keras")
    for flag, value in (
        ("backbone_learning_rate", FLAGS.backbone_learning_rate),
        ("freeze_epochs", settings.freeze_epochs),
    ):
        if is_random and value is not None:
            raise InputError(
                f"--{flag}={value} is for pretrained students, but --student={settings.student} "
                "starts from random weights: leave it out, or give --student_weights"
            )
    if settings.replay and FLAGS.distribute == "multi_worker":
        what = "--replay" if FLAGS.replay is not None else "an ONNX teacher"
        raise InputError(
            f"{what} is recorded on one machine, but --distribute is multi_worker: leave one of "
            "them out"
        )
    if settings.teacher_dtype is not None and settings.has_onnx_teacher:
        raise InputError(
            f"--teacher_dtype={settings.teacher_dtype} is for Keras teachers, but --teacher is "
            f"{settings.teacher}: an ONNX file has its own precision, leave it out"
        )
    if FLAGS.logical_devices and FLAGS.distribute in ("auto", "none"):
        raise InputError(
            f"--logical_devices={FLAGS.logical_devices} needs --distribute=mirrored, but "
            f"--distribute is {FLAGS.distribute}: set it, or leave --logical_devices out"
        )
    if settings.num_images > settings.batch_size:
        raise InputError(
            f"--num_images={settings.num_images} is more than the batch size "
            f"{settings.batch_size}: choose fewer, or a larger --batch_size"
        )
