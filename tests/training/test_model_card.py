"""A finished run's model card, and its HParams, histograms and profile in TensorBoard."""

import json
import re

import keras
import networks
import numpy as np
import pytest
import yaml
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from stkd_keras import FrozenTeacher, Mixup, SimilarityTransferDistiller, data, experiment
from stkd_keras.training.model_card import model_card
from stkd_keras.training.run_directory import RunDirectory

HOSTILE = ("<script>alert(1)</script>", "a|b", "`c`\n# d", "[e](javascript:alert(1))", "_f_")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run with histograms and a profile, its config, scores and test data."""
    x, y = networks.images(120, classes=5)
    x = np.uint8(x)
    dataset = data.from_arrays(x, y, x[:50], y[:50], class_names=HOSTILE)
    train_split, validation_split = experiment.split(dataset)
    keras.utils.set_random_seed(0)
    teacher = FrozenTeacher(networks.small_convolutional_classifier(classes=5, width=8))
    student = networks.small_convolutional_classifier(classes=5)
    run = RunDirectory(tmp_path_factory.mktemp("run") / "small-run")
    settings = {"method": "stkd", "temperature": 4.0, "seed": 3, "image_size": None, "flip": False,
                "teacher_weights": teacher.fingerprint()}  # fmt: skip
    config = {
        "settings": settings,
        "data": experiment.describe(dataset, train_split, validation_split),
        "teachers": [{"source": "teacher.keras", "weights": None}],
        "command": ["train.py", "--data_dir=a folder"],
        "versions": {"keras": keras.__version__},
        "git_commit": None,
    }
    distiller = SimilarityTransferDistiller(student, teacher, mixing=Mixup(1.0))
    experiment.start(run, config, distiller.distribute_strategy)
    experiment.train(
        distiller, dataset, train_split, validation_split, run, epochs=1, batch_size=16,
        learning_rate=0.1, weight_decay=0.0, histogram_freq=1, profile_steps=2,
    )  # fmt: skip
    splits = {"train": train_split, "validation": validation_split}
    metrics = experiment.evaluate(student, teacher, dataset, splits, temperature=2.5)
    experiment.complete(run, student, metrics)
    return run, config, metrics, (x[:50], y[:50])


def test_the_scores_on_the_card_match_scikit_learn(finished):
    run, _, _, (x, y) = finished
    card = run.model_card.read_text()
    logits = keras.saving.load_model(run.model).predict(x, verbose=0).astype("float64")
    accuracy = 100 * accuracy_score(y, logits.argmax(axis=1))
    nll = log_loss(y, softmax(logits, axis=1), labels=range(5))
    row = re.search(r"\| test \| ([\d.]+) % \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) \|", card)
    assert float(row[1]) == pytest.approx(accuracy, abs=0.006)
    assert float(row[4]) == pytest.approx(nll, abs=1e-4)
    correct = int((logits.argmax(axis=1) == y).sum())
    interval = binomtest(correct, 50).proportion_ci(method="wilson")
    bounds = [100 * bound for bound in interval]
    np.testing.assert_allclose([float(row[2]), float(row[3])], bounds, atol=0.006)
    assert "divide the logits by the temperature 2.5 before" in card
    nll = log_loss(y, softmax(logits / 2.5, axis=1), labels=range(5))
    row = re.search(r"\| test, calibrated \| .*? \| ([\d.]+) \|", card)
    assert float(row[1]) == pytest.approx(nll, abs=1e-4)


def test_the_card_names_command_data_teacher_and_settings(finished):
    run, config, _, _ = finished
    card = run.model_card.read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "keras"
    assert head["pipeline_tag"] == "image-classification"
    assert "python train.py '--data_dir=a folder'" in card
    assert config["settings"]["teacher_weights"] in card
    assert "108 train, 12 validation, 50 test images of 8 x 8 x 1" in card
    assert "| temperature | 4.0 |" in card


def test_class_names_are_escaped_on_the_card(finished):
    card = finished[0].model_card.read_text()
    assert "<script" not in card
    line = next(line for line in card.splitlines() if line.startswith("Classes, "))
    assert r"a\|b, \`c\` \# d, \[e\](javascript:alert(1)), \_f\_" in line


def test_the_code_on_the_card_runs(finished):
    run, _, _, (x, _) = finished
    code = re.search(r"```python\n(.*?)```", run.model_card.read_text(), re.DOTALL)[1]
    names = {"images": x}
    exec(code.replace("student.keras", str(run.model)), names)
    assert names["logits"].shape == (50, 5)


def test_a_student_without_a_teacher_has_none_on_its_card(finished):
    _, config, metrics, _ = finished
    alone = {**config, "teachers": [], "settings": {"method": "ce", "teacher_weights": None}}
    card = model_card(networks.dense_classifier(), alone, {"test": metrics["test"]})
    assert "Teacher: none." in card
    assert "its teacher" not in card


def test_hparams_have_the_settings_and_the_scores_of_metrics_json(finished):
    run = finished[0]
    events = EventAccumulator(str(run.tensorboard / "test")).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    values = {k: getattr(v, v.WhichOneof("kind")) for k, v in started.hparams.items()}
    assert values["temperature"] == 4.0
    assert values["seed"] == 3
    assert values["method"] == "stkd"
    assert values["flip"] is False
    assert "image_size" not in values
    assert "teacher_weights" not in values
    saved = json.loads(run.metrics.read_text())
    for name, expected in {**saved["test"], **saved["fidelity"]}.items():
        event = events.Tensors(f"test_{name}")[-1]
        assert make_ndarray(event.tensor_proto) == np.float32(expected)


def test_histograms_and_a_profile_are_written_on_request(finished):
    run = finished[0]
    tags = EventAccumulator(str(run.tensorboard / "train")).Reload().Tags()["tensors"]
    student = keras.saving.load_model(run.model)
    histograms = [tag for tag in tags if tag.endswith("/histogram")]
    assert len(histograms) >= len(student.weights)
    assert len(set(histograms)) == len(histograms)
    profiles = list(run.tensorboard.rglob("*.xplane.pb"))
    assert len(profiles) == 1
    assert student.name.encode() in profiles[0].read_bytes()
