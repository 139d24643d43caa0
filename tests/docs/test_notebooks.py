"""The notebooks run, and are stored with their outputs."""

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
QUICKEST = "virtual_samples"


@pytest.mark.process
@pytest.mark.parametrize(
    "notebook",
    [n if n.stem == QUICKEST else pytest.param(n, marks=pytest.mark.slow) for n in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs_and_leaves_no_files(notebook):
    before = set(notebook.parent.rglob("*"))
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, resources={"metadata": {"path": notebook.parent}}).execute()
    assert {p for p in notebook.parent.rglob("*") if "__pycache__" not in p.parts} == before


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_complete_and_without_errors(notebook):
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any(output.output_type == "stream" for output in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
