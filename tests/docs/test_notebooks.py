"""The notebooks run from a clone, and are stored with what they print and show."""

import pathlib
import time

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
# The quickest.
QUICK = "virtual_samples"


@pytest.mark.process
@pytest.mark.parametrize(
    "notebook",
    [n if n.stem == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs_within_three_minutes_and_leaves_nothing_behind(notebook):
    before = set(notebook.parent.rglob("*"))
    content = nbformat.read(notebook, as_version=4)
    start = time.monotonic()
    nbclient.NotebookClient(content, resources={"metadata": {"path": notebook.parent}}).execute()
    assert time.monotonic() - start < 180
    assert {p for p in notebook.parent.rglob("*") if "__pycache__" not in p.parts} == before


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_as_it_ran_from_the_first_cell_to_the_last(notebook):
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any(output.output_type == "stream" for output in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_the_three_notebooks_are_there():
    assert [n.stem for n in NOTEBOOKS] == ["twenty_lines", "virtual_samples", "your_images"]
