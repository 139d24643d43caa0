"""Runs the notebooks and stores them with their outputs.

python docs/run_notebooks.py
"""

import pathlib

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent / "notebooks"


def run(path: pathlib.Path) -> nbformat.NotebookNode:
    """Runs a notebook in its folder and returns it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": FOLDER}},
    )
    return client.execute()


if __name__ == "__main__":
    for file in sorted(FOLDER.glob("*.ipynb")):
        print(file)
        nbformat.write(run(file), file)
