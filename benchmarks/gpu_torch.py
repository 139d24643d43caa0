"""Times training steps in PyTorch, for gpu.py.

Run as `python gpu_torch.py PART SETTINGS` like gpu_steps.py, which it doesn't share a process with:
TensorFlow and PyTorch each bring their own CUDA libraries.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_turns import built, report, time_by_turns

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "support"))

TEMPERATURE, SOFT_WEIGHT, LABEL_WEIGHT = 4.0, 0.9, 0.1
CONTENDERS = {
    "PyTorch eager": {},
    "PyTorch eager, bfloat16": {"bfloat16": True},
    "PyTorch compiled": {"compiled": True},
    "PyTorch compiled, bfloat16": {"compiled": True, "bfloat16": True},
}


def main(settings: dict[str, Any]) -> None:
    """Times all contenders."""
    chosen = [x for x in CONTENDERS if not settings["contender"] or x in settings["contender"]]
    try:
        import torch
    except ImportError:
        for name in chosen:
            report(name, error="PyTorch isn't installed")
        return
    cuda = torch.cuda.is_available()
    report(
        None,
        torch=torch.__version__,
        torch_device=torch.cuda.get_device_name() if cuda else "CPU",
    )
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = "cuda" if cuda else "cpu"
    makers = {x: functools.partial(loop, device, settings, **CONTENDERS[x]) for x in chosen}
    reset_peak = torch.cuda.reset_peak_memory_stats if cuda else lambda: None

    def peak() -> float | None:
        return torch.cuda.max_memory_allocated() / 1e6 if cuda else None

    time_by_turns(built(makers, settings), settings, reset_peak, peak)


def loop(
    device: str, settings: dict[str, Any], compiled: bool = False, bfloat16: bool = False
) -> Callable[[int], int]:
    """Returns a function that takes the given number of steps, and returns it."""
    import torch
    import torch_networks
    from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

    layout = {"memory_format": torch.channels_last}
    rng = np.random.default_rng(0)
    count, classes = settings["batch_size"], settings["classes"]
    images = torch.tensor(rng.integers(0, 256, (count, 3, 32, 32)), dtype=torch.float32) / 255
    images, labels = images.contiguous(**layout), torch.tensor(rng.integers(0, classes, count))
    if device == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()

    def network(name):
        return torch_networks.build(name, classes).to(device).to(**layout)

    teacher = network(settings["teacher"]).eval().requires_grad_(False)
    student = network(settings["student"]).train()
    optimizer = torch.optim.SGD(
        student.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def loss_of(mixed, soft_labels):
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                targets = teacher(mixed)
            logits = student(mixed)
        logits, targets = logits.float(), targets.float()
        soft = kl_div(
            log_softmax(logits / TEMPERATURE, 1), softmax(targets / TEMPERATURE, 1),
            reduction="batchmean",
        )  # fmt: skip
        return LABEL_WEIGHT * cross_entropy(logits, soft_labels) + (
            SOFT_WEIGHT * TEMPERATURE**2 * soft
        )

    if compiled:
        loss_of = torch.compile(loss_of)

    def run(steps: int) -> int:
        for _ in range(steps):
            pixels = images.to(device, non_blocking=True)
            rows = one_hot(labels.to(device, non_blocking=True), classes).float()
            share = torch.rand(count, device=device)
            partners = torch.randperm(count, device=device)
            wide, share = share[:, None, None, None], share[:, None]
            mixed = wide * pixels + (1 - wide) * pixels[partners]
            loss = loss_of(mixed, share * rows + (1 - share) * rows[partners])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()  # Waits for the device.
        return steps

    return run


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
