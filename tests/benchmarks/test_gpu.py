"""The benchmark of training on a GPU, run on the CPU."""

import json

import pytest

TINY = (
    "--teacher=resnet8", "--student=resnet8", "--batch_size=4", "--classes=3", "--chunk=2",
    "--rounds=2", "--steps_per_execution=2",
)  # fmt: skip


@pytest.mark.slow
def test_each_part_adds_its_rows_to_the_table_and_the_file(command, tmp_path):
    def run(*flags):
        completed = command("benchmarks/gpu.py", *TINY, "--json=gpu.json", *flags, cwd=tmp_path)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout, json.loads((tmp_path / "gpu.json").read_text())

    chosen = ["ours", "Keras as written"]
    _, first = run("--only=steps", *(f"--contender={name}" for name in chosen))
    assert list(first["rows"]) == chosen
    # A part that is stopped leaves the results of the others.
    printed, stopped = run("--only=replicas", "--limit=1")
    assert stopped["errors"]["replicas"] == "stopped after 1 seconds"
    assert stopped["rows"] == first["rows"]

    printed, result = run("--only=replicas", "--only=epoch")
    assert result["errors"] == {"steps": None, "replicas": None, "epoch": None}
    steps = [*chosen, "one replica", "two replicas"]
    assert list(result["rows"]) == [*steps, "an epoch of train.py"]
    for name in steps:
        row = result["rows"][name]
        assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"]
        assert row["first_step_seconds"] > row["ms_max"] / 1e3
        assert f"| {name} | {row['ms']:.2f} | " in printed
    for one, other in (chosen, steps[2:][::-1]):
        ratio = result["rows"][one]["ms"] / result["rows"][other]["ms"]
        assert result["ratios"][f"{one} / {other}"] == pytest.approx(ratio)
        assert f"| {one} / {other} | {ratio:.3f} |" in printed
    epoch = result["rows"]["an epoch of train.py"]
    assert epoch["images_per_second"] > epoch["images_per_second_with_epoch_end"] > 0


def test_results_of_other_models_are_not_overwritten(commands, tmp_path):
    settings = {"teacher": "resnet56", "student": "resnet8", "batch_size": 4, "classes": 3}
    content = json.dumps({"settings": settings, "rows": {}})
    (tmp_path / "gpu.json").write_text(content)
    completed = commands.run("benchmarks/gpu.py", *TINY, "--json=gpu.json", cwd=tmp_path)
    assert completed.returncode == 2
    assert "--teacher=resnet56, not resnet8" in completed.stderr
    assert (tmp_path / "gpu.json").read_text() == content
