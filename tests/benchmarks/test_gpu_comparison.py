"""The comparison on a GPU, run on the CPU for a few steps. Skipped without PyTorch."""

import json

import numpy as np
import pytest

import models
from stkd_keras import SoftTargetLoss, evaluation, methods

torch = pytest.importorskip("torch")
import gpu_comparison_torch as comparison  # noqa: E402


def test_the_losses_are_those_of_stkd_keras():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=3, size=(2, 8, 10)).astype("float32")
    labels = np.eye(10, dtype="float32")[rng.integers(10, size=8)]
    log_softmax = student - np.log(np.exp(student).sum(1, keepdims=True))
    ce = -(labels * log_softmax).sum(1).mean()
    features = {"logits": student}, {"logits": teacher}, labels
    expected = {
        "ce": ce,
        "kd": 0.1 * ce + 0.9 * float(SoftTargetLoss(4.0)(teacher, student)),
        "dkd": ce + np.mean(methods.DKD()(*features)),
        "dist": ce + np.mean(methods.DIST()(*features)),
    }
    arrays = [torch.tensor(each) for each in (student, teacher, labels)]
    found = {name: float(comparison.ROWS[name][1](*arrays)) for name in expected}
    assert found == pytest.approx(expected, rel=1e-5)


def test_labels_are_mixed_by_the_share_of_the_pixels(monkeypatch):
    monkeypatch.setattr(comparison.base, "augmented", lambda images: images)
    monkeypatch.setattr(comparison.base, "normalized", lambda images, _: images)
    labels = torch.arange(10).repeat(5)
    images = (20 * labels.to(torch.uint8))[:, None, None, None].expand(50, 32, 32, 3)
    for is_first_half in (True, False):
        batches = comparison.draw(images, labels, torch.tensor([is_first_half]))
        for kind, (x, soft_labels) in batches.items():
            means = soft_labels @ torch.arange(10.0) * 20 / 255
            torch.testing.assert_close(x.mean((1, 2, 3)), means, rtol=1e-4, atol=1e-4)
            is_mixed = ((soft_labels > 0).sum(1) > 1).float().mean() > 0.5
            assert is_mixed == (kind in ("mixed", "cut") or (kind == "half" and is_first_half))


def test_scores_are_those_of_stkd_keras():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 10)), rng.integers(10, size=500)
    logits[np.arange(500), labels] += 1.5
    found = comparison.nll_and_ece(4 * logits, labels)
    expected = evaluation.score(4 * logits, labels)
    assert found == pytest.approx((expected["nll"], expected["ece"]), rel=1e-5)
    grid = np.geomspace(0.05, 20, 601)
    best = min(grid, key=lambda t: evaluation.score(4 * logits / t, labels)["nll"])
    assert comparison.best_temperature(4 * logits, labels) == pytest.approx(best, rel=0.01)


def test_a_second_call_trains_what_is_missing_alike(command, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"train_labels": np.arange(100) % 10, "test_labels": np.arange(20) % 10}
    for part, size in (("train", 100), ("test", 20)):
        arrays[f"{part}_images"] = rng.integers(256, size=(size, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", **arrays)
    flags = ("--images=images.npz", "--runs=runs", "--steps=3", "--batch_size=8")

    def run(*more):
        completed = command("benchmarks/gpu_comparison.py", *flags, *more, cwd=tmp_path)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    def nll():
        lines = map(json.loads, path.read_text().splitlines())
        return {(x["network"], x["row"], x["seed"]): x["nll"] for x in lines}

    path = tmp_path / "runs" / "runs.jsonl"
    assert "The time is up" in run("--minutes=0")
    assert run().count("| 3 |\n") == 7
    first = nll()
    assert len(first) == 1 + 7 * 3
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], *lines[3:-1]]) + "\n")
    assert "wrn_40_2 ce" not in run()
    assert nll() == pytest.approx(first, rel=1e-3)
    teacher = models.build("wrn_40_2", (32, 32, 3), 10)
    models.load_pytorch(teacher, tmp_path / "runs" / "teacher.safetensors")
