"""Small data sets, models and runs to report on."""

import html.parser
import json

import keras
import networks
import numpy as np

import stkd_keras.data

TEMPERATURE = 3.0


class Page(html.parser.HTMLParser):
    """The elements, the text and the numbers of a page."""

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


def dataset_of(classes, shape=(8, 8, 1), tests=230):
    """Random images, one training image per class."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (tests + len(classes), *shape), np.uint8)
    labels = np.arange(len(images)) % len(classes)
    return stkd_keras.data.from_arrays(
        images[tests:], labels[tests:], images[:tests], labels[:tests], classes
    )


def models_of(dataset, count):
    """Random classifiers, with confidences in many bins."""
    models = []
    for seed in range(count):
        keras.utils.set_random_seed(seed)
        model = networks.small_convolutional_classifier(dataset.num_classes, dataset.image_shape)
        model.layers[-1].kernel.assign(3 * model.layers[-1].kernel)
        models.append(model)
    return models


def write_run(folder, config=None, **settings):
    """Writes the config.json and history.csv of a run."""
    folder.mkdir()
    defaults = {"temperature": TEMPERATURE, "data_seed": 5, "mixing": "mixup", "mixup_alpha": 0.7}
    content = {
        "settings": {**defaults, **settings},
        "command": ["train.py", "--student=</code><b>bold", "z" * 300],
        "versions": {"keras": "3.15.1"},
        "git_commit": "0123abcd",
        "data": {"images": {"train": 24}},
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "history.csv").write_text(
        "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.1,2.5,NA,NA\n1,0.4,1.5,0.3,1.9\n"
    )
    return folder
