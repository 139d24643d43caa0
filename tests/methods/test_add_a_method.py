"""The method in docs/add-a-method.md works."""

import pathlib
import re

from stkd_keras.methods import METHODS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "add-a-method.md"


def test_the_method_of_the_page_registers_and_passes_its_own_test(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    # monkeypatch undoes the page's registration after the test.
    monkeypatch.setitem(METHODS, "pefd", METHODS["at"])
    names: dict = {}
    exec("\n".join(blocks), names)
    assert METHODS["pefd"].term is names["ProjectorEnsemble"]
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()
