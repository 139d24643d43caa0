"""The code on the pages about methods runs as it stands there."""

import pathlib
import re

import models
from stkd_keras.methods import METHODS

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = DOCS / "add-a-method.md"


def test_the_method_of_the_page_registers_and_passes_its_own_test(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    # What the page adds to the table goes again when the test is over.
    monkeypatch.setitem(METHODS, "pefd", METHODS["at"])
    names: dict = {}
    exec("\n".join(blocks), names)
    assert METHODS["pefd"].term is names["ProjectorEnsemble"]
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_the_example_of_the_page_on_methods_trains():
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "methods.md").read_text(), re.DOTALL)
    given = {
        "student": models.build("resnet8", (8, 8, 1), 10),
        "teacher": models.build("resnet14", (8, 8, 1), 10),
    }
    exec(block, given)
    assert int(given["distiller"].step.numpy()) == 2
