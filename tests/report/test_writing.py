"""The report's numbers are those of scikit-learn, SciPy and NumPy; its page says what it says."""

import html.parser
import itertools
import json
import math

import keras
import networks
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import tensorflow as tf

import stkd_keras.data
from stkd_keras import FrozenTeacher, InputError, Mixup, evaluation, experiment
from stkd_keras.evaluation import cost
from stkd_keras.experiment import Student
from stkd_keras.randomness import MIXING, step_seed

CLASSES = (
    "<script>alert(1)</script>", "$\\frac{x}$", "猫 & 犬", "x" * 300, "a\u202eb", '"quoted\'',
    "cat", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TEMPERATURE = 3.0


class Page(html.parser.HTMLParser):
    """What is in a page: its elements, its text, and its numbers."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._json, self._within = [], "", "", None
        self.feed(text)
        self.numbers = json.loads(self._json)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_data(self, data):
        if self._within == "script":
            self._json += data
        elif self._within != "style":
            self.text += data

    def handle_endtag(self, tag):
        self._within = None


def dataset_of(classes=CLASSES, shape=(8, 8, 1), tests=230, seed=0):
    random = np.random.default_rng(seed)
    count = len(classes)
    images = random.integers(0, 256, (tests + 2 * count, *shape), np.uint8)
    labels = np.arange(len(images)) % count
    return stkd_keras.data.from_arrays(
        images[tests:], labels[tests:], images[:tests], labels[:tests], classes
    )


def models_of(dataset, count):
    models = []
    for seed in range(count):
        keras.utils.set_random_seed(seed)
        model = networks.small_convolutional_classifier(dataset.num_classes, dataset.image_shape)
        # So that confidences are spread over the bins.
        model.layers[-1].kernel.assign(3 * model.layers[-1].kernel)
        models.append(model)
    return models


def write_run(folder, **settings):
    folder.mkdir()
    defaults = {"temperature": TEMPERATURE, "data_seed": 5, "mixing": "mixup", "mixup_alpha": 0.7}
    config = {
        "settings": {**defaults, **settings},
        "command": ["train.py", "--student=</code><b>bold"],
        "versions": {"keras": "3.15.1"},
        "git_commit": "0123abcd",
        "data": {"images": {"train": 24}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "history.csv").write_text(
        "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.1,2.5,NA,NA\n1,0.4,1.5,0.3,1.9\n"
    )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report on two students and their teacher, and what it was made of."""
    folder = tmp_path_factory.mktemp("report")
    dataset = dataset_of()
    student, other, teacher = models_of(dataset, 3)
    students = [
        Student("<i>small</i>", student, write_run(folder / "run")),
        Student("other", other),
    ]
    file = folder / "report.html"
    metrics = experiment.report(file, students, FrozenTeacher(teacher), dataset, "big")
    logits = [
        np.float64(model.predict(np.float32(dataset.test.images), verbose=0))
        for model in (student, teacher, other)
    ]
    text = file.read_text()
    return {
        "text": text, "page": Page(text), "numbers": Page(text).numbers, "dataset": dataset,
        "models": [student, teacher, other], "logits": logits, "labels": dataset.test.labels,
        "metrics": metrics,
    }  # fmt: skip


def close(one, other):
    np.testing.assert_allclose(np.float64(one), np.float64(other), atol=1e-6, rtol=0)


def test_accuracy_and_its_interval_are_scikit_learns_and_scipys(made):
    for entry, logits in zip(made["numbers"]["models"], made["logits"], strict=True):
        predicted = logits.argmax(axis=1)
        close(entry["accuracy"], sklearn.metrics.accuracy_score(made["labels"], predicted))
        correct = int((predicted == made["labels"]).sum())
        assert entry["correct"] == correct
        test = scipy.stats.binomtest(correct, len(made["labels"]))
        close(entry["accuracy_interval"], test.proportion_ci(method="wilson"))


@pytest.mark.parametrize(("right", "of"), [(0, 1), (1, 1), (0, 50), (50, 50), (9_000, 10_000)])
def test_an_interval_is_scipys_wherever_all_or_none_are_right(right, of):
    expected = scipy.stats.binomtest(right, of).proportion_ci(method="wilson")
    close(evaluation.wilson_interval(right, of), expected)


def test_each_class_has_its_accuracy_and_interval(made):
    for entry, logits in zip(made["numbers"]["models"], made["logits"], strict=True):
        for number, row in enumerate(entry["per_class"]):
            right = logits.argmax(axis=1)[made["labels"] == number] == number
            assert row["images"] == len(right)
            close(row["accuracy"], right.mean())
            test = scipy.stats.binomtest(int(right.sum()), len(right))
            close(row["interval"], test.proportion_ci(method="wilson"))


def test_confusion_likelihood_and_top_5_are_scikit_learns(made):
    classes = np.arange(len(CLASSES))
    for entry, logits in zip(made["numbers"]["models"], made["logits"], strict=True):
        expected = sklearn.metrics.confusion_matrix(
            made["labels"], logits.argmax(axis=1), labels=classes
        )
        np.testing.assert_array_equal(entry["confusion"], expected)
        probabilities = scipy.special.softmax(logits, axis=1)
        close(entry["nll"], sklearn.metrics.log_loss(made["labels"], probabilities, labels=classes))
        top5 = sklearn.metrics.top_k_accuracy_score(made["labels"], logits, k=5, labels=classes)
        close(entry["top5_accuracy"], top5)


def test_calibration_is_that_of_fifteen_bins_by_hand(made):
    for entry, logits in zip(made["numbers"]["models"], made["logits"], strict=True):
        confidence = scipy.special.softmax(logits, axis=1).max(axis=1)
        right = logits.argmax(axis=1) == made["labels"]
        error = 0.0
        for number, row in enumerate(entry["reliability"]):
            inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
            assert row["images"] == inside.sum()
            if inside.any():
                close([row["accuracy"], row["confidence"]],
                      [right[inside].mean(), confidence[inside].mean()])  # fmt: skip
                error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        close(entry["ece"], error)


def kl_by_hand(teacher, student):
    teacher, student = (scipy.special.softmax(logits, axis=1) for logits in (teacher, student))
    return scipy.stats.entropy(teacher, student, axis=1)


def test_agreement_and_kl_are_numpys_and_scipys(made):
    models, (student, teacher, other) = made["numbers"]["models"], made["logits"]
    for entry, logits in ((models[0], student), (models[2], other)):
        found = entry["fidelity"]["test"]
        close(found["agreement"], (logits.argmax(1) == teacher.argmax(1)).mean())
        close(found["kl"], kl_by_hand(teacher, logits).mean())
    assert "fidelity" not in models[1]


def test_virtual_samples_are_test_images_mixed_as_the_run_mixed(made):
    dataset, count = made["dataset"], len(made["labels"])
    images, labels = next(
        iter(stkd_keras.data.pipeline(dataset, dataset.test, count, 5, "none"))
    )  # fmt: skip
    rows = tf.one_hot(labels, len(CLASSES))
    mixed, _, _ = Mixup(alpha=0.7)(images, rows, seed=step_seed(5, MIXING, 0))
    student, teacher = (model.predict(mixed, verbose=0) for model in made["models"][:2])
    found = made["numbers"]["models"][0]["fidelity"]["virtual"]
    close(found["agreement"], (student.argmax(1) == teacher.argmax(1)).mean())
    close(found["kl"], kl_by_hand(teacher, student).mean())
    assert found["images"] == count


def test_similarity_is_the_mean_soft_output_of_each_class_and_its_correlation_pearsons(made):
    matrices = []
    for entry, logits in zip(made["numbers"]["models"], made["logits"], strict=True):
        soft = scipy.special.softmax(logits / TEMPERATURE, axis=1)
        expected = [soft[made["labels"] == c].mean(axis=0) for c in range(len(CLASSES))]
        close(entry["similarity"], expected)
        matrices.append(np.array(expected))
    others = ~np.eye(len(CLASSES), dtype=bool)
    expected = scipy.stats.pearsonr(matrices[0][others], matrices[1][others]).statistic
    close(made["numbers"]["models"][0]["similarity_correlation"], expected)


def test_the_images_shown_are_those_with_the_largest_kl(made):
    divergence = kl_by_hand(made["logits"][1], made["logits"][0])
    shown = made["numbers"]["most_different"]
    assert [each["image"] for each in shown] == np.argsort(-divergence)[:12].tolist()
    close([each["kl"] for each in shown], np.sort(divergence)[::-1][:12])


def test_the_scores_are_those_of_evaluate(made):
    student, teacher, _ = made["models"]
    expected = experiment.evaluate(student, FrozenTeacher(teacher), made["dataset"], {})
    assert set(made["metrics"]) == set(expected)
    for name, values in expected.items():
        assert made["metrics"][name] == pytest.approx(values, abs=1e-6)


def test_what_comes_from_files_is_text_on_the_page_and_nothing_is_fetched(made):
    tags = [tag for tag, _ in made["page"].elements]
    assert tags.count("script") == 1  # The numbers.
    assert "b" not in tags
    assert "i" not in tags
    assert "<script>alert(1)</script>" in made["page"].text
    assert "--student=</code><b>bold" in made["page"].text
    assert "$\\frac{x}$" in made["page"].text
    assert "\u202e" not in made["text"]
    for _, attributes in made["page"].elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#")), value


def test_every_figure_has_an_alternative_and_a_caption_and_headings_are_in_order(made):
    elements = made["page"].elements
    figures = [attributes for tag, attributes in elements if tag == "svg"]
    assert len(figures) >= 12
    assert all(len(each["aria-label"]) > 30 and each["role"] == "img" for each in figures)
    assert sum(tag == "figcaption" for tag, _ in elements) == len(figures)
    assert all(attributes["alt"] for tag, attributes in elements if tag == "img")
    levels = [int(tag[1]) for tag, _ in elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    identifiers = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_cost_is_counted(made):
    student = made["numbers"]["models"][0]["cost"]
    # A convolution of 3x3 with stride 2 on 8x8, four channels; then a dense layer.
    assert student["multiply_adds"] == 9 * 9 * 4 + 36 * 12
    assert student["parameters"] == 9 * 4 + 2 * 4 + 36 * 12 + 12
    assert student["images_per_second_128"] > student["images_per_second_1"] > 0


def test_multiply_adds_of_other_layers_are_those_by_hand():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(8, 3, groups=2)(inputs)
    x = keras.layers.Conv2DTranspose(3, 2, strides=2)(x)
    x = keras.layers.SeparableConv2D(5, 3)(x)
    x = keras.layers.Reshape((-1, 5))(x)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.Model(inputs, x)])
    convolutions = 36 * 9 * 2 * 8 + 36 * 4 * 8 * 3 + 100 * (9 * 3 + 3 * 5)
    attention = 4 * 100 * 5 * 6 + 2 * 100 * 100 * 6
    assert cost.multiply_adds(model, (8, 8, 4)) == convolutions + attention


@pytest.mark.parametrize(
    ("classes", "shape", "tests"),
    [(("a", "b"), (8, 8, 3), 1), ([f"class {n}" for n in range(200)], (9, 7, 1), 90)],
)
def test_one_test_image_two_classes_or_two_hundred_are_no_trouble(classes, shape, tests, tmp_path):
    dataset = dataset_of(classes, shape, tests)
    student, teacher = models_of(dataset, 2)
    file = tmp_path / "report.html"
    experiment.report(file, [Student("s", student)], FrozenTeacher([teacher, student]), dataset)
    page = Page(file.read_text())
    assert file.stat().st_size < 5e6
    if len(classes) == 2:
        assert page.numbers["models"][0]["similarity_correlation"] is None
        assert page.numbers["models"][0]["accuracy"] in (0, 1)
    else:
        assert math.isfinite(page.numbers["models"][0]["similarity_correlation"])
        assert "All 200 classes" in page.text


def test_without_a_teacher_the_page_says_why_sections_are_empty(tmp_path):
    dataset = dataset_of(("a", "b", "c"), tests=9)
    file = tmp_path / "report.html"
    metrics = experiment.report(file, [Student("s", *models_of(dataset, 1))], None, dataset)
    assert set(metrics) == {"test"}
    page = Page(file.read_text())
    assert page.text.count("There is no teacher to compare with") == 4
    assert "fidelity" not in page.numbers["models"][0]


EXPORT = {
    "student": {"accuracy": 0.5, "bytes": 1_000_000, "latency_ms": 1.0, "images_per_second": 1e3},
    "machine": "<b>a machine</b>",
    "images": 9,
    "formats": {
        "litert": {
            "file": "student.tflite", "bytes": 250_000, "accuracy": 0.5, "agreement": 0.998,
            "largest_difference": 1e-3, "latency_ms": 0.5, "images_per_second": 2e3,
            "runtime": "LiteRT 2.3",
        }
    },
}  # fmt: skip


def test_exported_models_have_a_table_and_a_broken_file_one_line(tmp_path):
    dataset = dataset_of(("a", "b", "c"), tests=9)
    run = write_run(tmp_path / "run")
    (run / "export").mkdir()
    students = [Student("s", *models_of(dataset, 1), run)]
    (run / "export" / "export.json").write_text(json.dumps(EXPORT))
    experiment.report(tmp_path / "report.html", students, None, dataset)
    text = Page((tmp_path / "report.html").read_text()).text
    for shown in ("student.tflite", "99.80 %", "LiteRT 2.3", "0.25", "<b>a machine</b>"):
        assert shown in text
    before = (tmp_path / "report.html").read_bytes()
    for broken in (
        {**EXPORT, "formats": []},
        {**EXPORT, "student": {"accuracy": "high"}},
        {**EXPORT, "formats": {"onnx": {"bytes": math.inf}}},
    ):
        (run / "export" / "export.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"export\.json has "):
            experiment.report(tmp_path / "report.html", students, None, dataset)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "hot"}, {"temperature": 0}, {"data_seed": -1}, {"mixing": "blend"},
        {"mixup_alpha": "x"}, {"mixup_probability": [1]}, {"num_images": 1e9},
    ],
)  # fmt: skip
def test_settings_that_no_run_has_are_refused_before_anything_is_measured(settings, tmp_path):
    dataset = dataset_of(("a", "b", "c"), tests=9)
    students = [Student("s", *models_of(dataset, 1), write_run(tmp_path / "run", **settings))]
    with pytest.raises(InputError, match=r"config\.json has"):
        experiment.report(tmp_path / "report.html", students, None, dataset)
    assert not (tmp_path / "report.html").exists()


def test_a_place_without_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="name a file"):
        experiment.report(tmp_path / "no" / "report.html", [], None, dataset_of(("a", "b")))
