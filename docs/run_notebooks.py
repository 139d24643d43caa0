"""Runs the notebooks, and stores them with what they print and show.

python docs/run_notebooks.py
"""

import pathlib

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent / "notebooks"


def run(path: pathlib.Path) -> nbformat.NotebookNode:
    """Runs a notebook in its folder, and returns it with its outputs.

    Of a progress bar only the last state is kept, and the colours of a terminal aren't.
    """
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
