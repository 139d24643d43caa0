"""The defaults of data sets, optimizers and methods."""

import dataclasses

import networks
import numpy as np
import pytest

from stkd_keras import InputError, MixupOrCutMix, SimilarityTransferDistiller, data, recipes


@pytest.fixture(scope="module")
def few():
    """A few digits."""
    pixels, labels = networks.images(20)
    return data.Split(pixels.astype(np.uint8), labels)


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_each_optimizer_has_its_own_defaults(dataset):
    sgd = recipes.recipe_for(dataset)
    assert (sgd.optimizer, sgd.learning_rate, sgd.weight_decay) == ("sgd", 0.1, 5e-4)
    adamw = recipes.recipe_for(dataset, "adamw")
    assert (adamw.optimizer, adamw.learning_rate, adamw.weight_decay) == ("adamw", 1e-3, 0.05)
    assert (adamw.student, adamw.epochs) == (sgd.student, sgd.epochs)


def test_the_recipe_from_scratch_is_that_of_version_0_1():
    with_options = dict.fromkeys(recipes.OPTIONAL)
    scratch = dataclasses.asdict(recipes.recipe_for("cifar10"))
    assert scratch == with_options | {
        "teacher": "resnet110", "student": "resnet20", "teacher_epochs": 200, "epochs": 200,
        "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4,
        "backbone_learning_rate": None, "temperature": 4.0, "soft_weight": 0.9, "label_weight": 0.1,
    }  # fmt: skip
    small = {"teacher": "resnet20", "student": "resnet8", "teacher_epochs": 30, "epochs": 30}
    digits = dataclasses.asdict(recipes.recipe_for("digits"))
    assert digits == scratch | small | {"batch_size": 64}


@pytest.mark.parametrize("optimizer", list(recipes.OPTIMIZERS))
def test_fine_tuning_changes_the_backbone_less_than_the_head(optimizer):
    finetune = recipes.recipe_for("digits", optimizer, "finetune")
    assert finetune.backbone_learning_rate < finetune.learning_rate
    assert finetune.student == "resnet8"
    assert recipes.recipe_for("digits", None, "finetune").optimizer == "adamw"


def test_the_recipe_decides_the_temperature_unless_the_method_has_its_own():
    finetune = dataclasses.replace(recipes.RECIPES["finetune"], temperature=1.5, soft_weight=0.3)
    kd = recipes.method_settings("kd", finetune, label_weight=0.2)
    assert (kd["temperature"], kd["soft_weight"], kd["label_weight"]) == (1.5, 0.3, 0.2)
    ce = recipes.method_settings("ce", finetune)
    assert (ce["soft_weight"], ce["label_weight"]) == (0.0, 1.0)
    published = recipes.method_settings("kd_standardized")["temperature"]
    assert recipes.method_settings("kd_standardized", finetune)["temperature"] == published


def test_explicit_settings_override_those_of_the_method():
    assert recipes.method_settings("stkd")["soft_weight"] == 0.9
    settings = recipes.method_settings("stkd", soft_weight=0.5, temperature=None)
    assert (settings["soft_weight"], settings["temperature"]) == (0.5, 4.0)


def test_a_setting_of_the_mixing_turns_it_on():
    assert recipes.method_settings("kd")["mixing"] == "none"
    assert recipes.method_settings("kd", mixup_alpha=0.5)["mixing"] == "mixup"
    assert recipes.method_settings("kd", mixing_per_batch=False)["mixing"] == "none"
    assert recipes.method_settings("stkd", mixup_probability=0.0)["mixing"] == "none"


@pytest.mark.parametrize(
    ("method", "settings", "named"),
    [
        ("hinton", {}, "kd"),
        ("kd", {"mixing": "none", "num_images": 3}, "num_images is 3"),
        ("kd", {"method_weight": 1.0}, "no loss term of its own"),
        ("fitnet", {"method_weight": -1.0}, "method_weight is -1"),
        ("fitnet", {"pretraining_epochs": 3}, "fitnet has no pretraining"),
        ("crd", {"mixing": "mixup"}, "isn't defined on mixed images"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(method, settings, named):
    with pytest.raises(InputError, match=named):
        recipes.method_settings(method, **settings)


def test_cutmix_mixes_two_images():
    settings = recipes.method_settings("stkd", mixing="cutmix", mixup_alpha=0.5)
    assert recipes.make_mixing(settings).alpha == 0.5
    for mixing in ("cutmix", "mixup,cutmix"):
        with pytest.raises(InputError, match="CutMix mixes two"):
            recipes.make_mixing({**settings, "mixing": mixing, "num_images": 3})
    both = recipes.make_mixing({**settings, "mixing": "mixup,cutmix"})
    assert (type(both), both.alpha) == (MixupOrCutMix, 0.5)


def test_a_setting_out_of_range_is_refused_even_if_it_has_no_effect():
    settings = recipes.method_settings("stkd", mixup_probability=0.0, mixup_alpha=-1.0)
    with pytest.raises(InputError, match="alpha is -1"):
        recipes.make_mixing(settings)


def test_settings_become_arguments_of_the_distiller(few):
    settings = recipes.method_settings("ab", mixing_epochs=3, pretraining_epochs=2, num_images=3)
    arguments = recipes.distiller_arguments("ab", settings, few, steps=5, data_seed=7)
    assert (arguments["mixing_steps"], arguments["mixing"].num_images) == (25, 3)
    assert [(term.name, term.pretraining_steps) for term in arguments["terms"]] == [("ab", 10)]

    settings = recipes.method_settings("kd_standardized", soft_weight=0.5, method_weight=2.0)
    distiller = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(),
        networks.small_convolutional_classifier(),
        **recipes.distiller_arguments("kd_standardized", settings, few, steps=5, data_seed=7),
    )
    (term,) = distiller.terms
    assert (term.weight, term.temperature, distiller.temperature) == (2.0, 2.0, 2.0)
    assert (distiller.mixing, distiller.mixing_steps, distiller.data_seed) == (None, None, 7)


def test_a_term_that_compares_images_knows_how_many_there_are(few):
    settings = recipes.method_settings("crd")
    (term,) = recipes.make_terms("crd", settings, few, steps=5, data_seed=7)
    assert term.get_config()["num_images"] == 20


def test_pretraining_takes_an_eighth_of_the_epochs():
    assert recipes.default_pretraining_epochs("ft", 240) == 30
    assert recipes.default_pretraining_epochs("ft", 1) == 1
    assert recipes.default_pretraining_epochs("kd", 240) == 0


@pytest.mark.parametrize("numbers", [(0, 0), (-1, 0), (float("nan"), 0), (0.1, -1), (0.1, 1e39)])
def test_a_learning_rate_or_weight_decay_out_of_range_is_refused(numbers):
    with pytest.raises(InputError, match="but must be"):
        recipes.check_recipe(*numbers)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ema": 1.5}, "ema is 1.5"),
        ({"ema": float("nan")}, "ema is nan"),
        ({"clip_norm": -1.0}, "clip_norm is -1"),
        ({"backbone_learning_rate": float("inf")}, "the backbone's learning rate is inf"),
    ],
)
def test_an_option_of_a_recipe_out_of_range_is_refused(options, named):
    with pytest.raises(InputError, match=named):
        recipes.check_recipe(0.1, 0.0, **options)


@pytest.mark.parametrize(
    ("numbers", "named"), [((3, 2, 0), "from 0 to epochs, which is 2"), ((1, 2, 5), "pretraining")]
)
def test_a_backbone_frozen_for_too_long_is_refused(numbers, named):
    with pytest.raises(InputError, match=named):
        recipes.check_freeze(*numbers)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(InputError, match="unknown recipe 'tune'; the nearest known: finetune"):
        recipes.recipe_for("digits", None, "tune")
