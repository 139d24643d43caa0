"""The code keeps to the layout rules of docs/decisions/0016."""

import ast
import graphlib
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("stkd_keras", "models")
CODE = [
    path
    for folder in (*PACKAGES, "tests", "benchmarks", "docs", ".")
    for path in REPOSITORY.joinpath(folder).glob("*.py" if folder == "." else "**/*.py")
]
TREES = {path: ast.parse(path.read_text()) for path in CODE}
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in REPOSITORY.joinpath(package).rglob("*.py")
}


def imports_of(module):
    """The modules of the project that a module imports when it is imported."""
    found = set()
    for node in TREES[MODULES[module]].body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    # A package's own __init__ runs before its modules.
    return {name for name in found & MODULES.keys() if not module.startswith(name)}


def test_no_file_has_more_than_400_lines():
    assert [path for path in CODE if len(path.read_text().splitlines()) > 400] == []


def test_no_function_has_more_than_60_lines_without_its_docstring():
    long = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > 60:
                    long.append((path.name, node.name, lines))
    assert long == []


def test_imports_have_no_cycle():
    try:
        graphlib.TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {error.args[1]}")


def test_stkd_keras_does_not_import_models():
    importing = [
        module
        for module in MODULES
        if module.startswith("stkd_keras")
        and any(name.split(".")[0] == "models" for name in imports_of(module))
    ]
    assert importing == []


def test_stkd_keras_has_at_most_22_entries():
    entries = [path.name for path in REPOSITORY.joinpath("stkd_keras").iterdir()]
    assert len([name for name in entries if name != "__pycache__"]) <= 22
