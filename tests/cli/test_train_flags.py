"""The settings that flags of train.py give."""

import json
import pathlib

import pytest
from commands import assert_one_line

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RUNS = {
    "cifar10-2-percent-stkd": "cifar10-2-percent/stkd-d0-s0",
    "cifar10-2-percent-kd": "cifar10-2-percent/kd-d0-s0",
    "cifar10-10-percent-stkd-first-half": "cifar10-10-percent/stkd-first-half-d0-s0",
    "cifar10-100-percent-kd": "cifar10-100-percent/kd-d0-s0",
}


@pytest.fixture
def settings(commands, tmp_path):
    """Returns the settings that flags give."""

    def run(*flags):
        completed = commands.run("tests/support/print_settings.py", *flags, cwd=tmp_path)
        assert completed.returncode == 0, completed.stderr
        return json.loads(completed.stdout)

    return run


def test_without_flags_a_small_student_is_distilled_on_digits(settings):
    given = settings()
    expected = {
        "dataset": "digits", "teacher": "resnet20", "student": "resnet8", "method": "stkd",
        "mixing": "mixup", "temperature": 4.0, "soft_weight": 0.9, "epochs": 30, "batch_size": 64,
        "learning_rate": 0.1, "replay": False, "needs_teacher": True,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected


def test_flags_override_the_defaults_of_data_set_optimizer_and_method(settings):
    given = settings(
        "--dataset=cifar100", "--optimizer=adamw", "--weight_decay=0", "--method=ft",
        "--epochs=40", "--mixing=cutmix", "--soft_weight=0.5",
    )  # fmt: skip
    assert (given["teacher"], given["student"], given["batch_size"]) == (
        "resnet110",
        "resnet20",
        128,
    )
    assert (given["learning_rate"], given["weight_decay"]) == (0.001, 0)
    assert (given["epochs"], given["pretraining_epochs"]) == (40, 5)
    assert (given["mixing"], given["soft_weight"], given["label_weight"]) == ("cutmix", 0.5, 1.0)


def test_the_recipe_sets_defaults_that_flags_override(settings):
    given = settings(
        "--recipe=finetune", "--student_weights=w.h5", "--ema=0", "--freeze_epochs=2",
        "--mixing=mixup,cutmix",
    )  # fmt: skip
    expected = {
        "optimizer": "adamw", "learning_rate": 1e-3, "backbone_learning_rate": 1e-4, "clip_norm": 1,
        "ema": None, "freeze_epochs": 2, "freeze_batch_norm": True, "label_smoothing": 0.1,
        "temperature": 4.0, "student": "resnet8", "batch_size": 32, "mixing": "mixup,cutmix",
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected


def test_flags_after_a_flag_file_override_it(settings, tmp_path):
    (tmp_path / "my.flags").write_text("# A comment.\n--epochs=3\n--seed=1\n")
    given = settings("--flagfile=my.flags", "--epochs=4")
    assert (given["epochs"], given["seed"]) == (4, 1)


def test_a_square_size_and_the_default_resize_are_stored_as_before(settings):
    given = settings("--image_size=24x24", "--resize=crop")
    assert (given["image_size"], given["resize"]) == (24, None)
    given = settings("--image_size=24x32", "--resize=pad")
    assert (given["image_size"], given["resize"]) == ([24, 32], "pad")


def test_every_flag_file_is_of_a_published_run():
    assert {path.stem for path in CONFIGS.glob("*.flags")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_flag_file_gives_the_settings_of_the_published_run(name, settings, repository):
    given = settings(f"--flagfile={CONFIGS / name}.flags")
    config = json.loads((repository / "docs" / "results" / RUNS[name] / "config.json").read_text())
    published = config["settings"]
    # Settings that later versions removed, that are only known once images are loaded, and that
    # don't change the result.
    removed = {"mixing_partners", "mixing_labels", "clean_soft_weight"}
    loaded = {"images", "replicas", "left_over", "teacher_weights"}
    expected = {k: v for k, v in published.items() if k not in removed | loaded | {"replay"}}
    assert {k: given.get(k) for k in expected} == expected
    added = set(given) - set(expected) - {"needs_teacher", "replay"}
    assert {given[name] for name in added} <= {None}
    flags = dict(
        line.removeprefix("--").split("=")
        for line in (CONFIGS / f"{name}.flags").read_text().splitlines()
        if line.startswith("--")
    )
    assert config["flags"]["validation_freq"] == int(flags["validation_freq"])


@pytest.mark.parametrize("flag", ["on_nan=stop", "clean_soft_weight=0", "mixing_labels=mixed"])
def test_a_removed_flag_is_unknown(flag, commands, tmp_path):
    assert_one_line(commands.run("train.py", f"--{flag}", cwd=tmp_path), flag.split("=")[0])
