"""The benchmark of `make demo`."""

import json

import networks


def test_the_table_has_a_row_for_each_method(commands, tmp_path):
    networks.small_convolutional_classifier().save(tmp_path / "teacher.keras")
    config = {
        "settings": {"dataset": "digits", "student": "resnet8"},
        "teachers": [{"source": str(tmp_path / "teacher.keras")}],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    completed = commands.run(
        "benchmarks/few_images.py", "--run=.", "--steps=1", "--seeds=1", "--images_per_class=2",
        "--batch_size=10", cwd=tmp_path,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    rows = [line.split("|")[1].strip() for line in completed.stdout.splitlines()[-3:]]
    assert rows == ["ce", "kd", "stkd"]
