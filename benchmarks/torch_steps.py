"""Training steps in PyTorch, for step_time.py."""

import pathlib
import sys
from collections.abc import Callable

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "support"))

import torch_networks
from torch.fx.experimental.optimization import fuse
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

TEMPERATURE, SOFT_WEIGHT, LABEL_WEIGHT = 4.0, 0.9, 0.1


def steps(teacher_name: str, student_name: str, images, labels) -> dict[str, Callable[[], float]]:
    """Returns training steps by name.

    Args:
        teacher_name: a model of the zoo.
        student_name: a model of the zoo.
        images: uint8 array (B, height, width, channels).
        labels: integer array (B,).
    """
    classes = int(labels.max()) + 1
    pixels = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32) / 255
    pixels = pixels.to(memory_format=torch.channels_last)
    targets = torch.tensor(labels)

    def network(name: str) -> torch.nn.Module:
        return torch_networks.build(name, classes).to(memory_format=torch.channels_last)

    def alone() -> Callable[[], float]:
        student = network(student_name).train()
        optimizer = sgd(student)

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(student(pixels), targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    def distilling(teacher: torch.nn.Module) -> Callable[[], float]:
        student = network(student_name).train()
        optimizer = sgd(student)
        hard_labels = one_hot(targets, classes).float()
        beta = torch.distributions.Beta(1.0, 1.0)

        def step() -> float:
            share = beta.sample((len(pixels),))
            partners = torch.randperm(len(pixels))
            wide = share[:, None, None, None]
            mixed = wide * pixels + (1 - wide) * pixels[partners]
            soft_labels = share[:, None] * hard_labels
            soft_labels = soft_labels + (1 - share[:, None]) * hard_labels[partners]
            with torch.inference_mode():
                soft_targets = softmax(teacher(mixed) / TEMPERATURE, 1)
            soft_targets = soft_targets.clone()  # Autograd refuses inference tensors.
            optimizer.zero_grad(set_to_none=True)
            logits = student(mixed)
            log_probabilities = log_softmax(logits / TEMPERATURE, 1)
            soft = kl_div(log_probabilities, soft_targets, reduction="batchmean")
            loss = SOFT_WEIGHT * TEMPERATURE**2 * soft
            loss = loss + LABEL_WEIGHT * cross_entropy(logits, soft_labels)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    teacher = network(teacher_name).eval()
    return {
        "PyTorch, student alone": alone(),
        "PyTorch": distilling(teacher),
        "PyTorch, folded teacher": distilling(fuse(teacher).to(memory_format=torch.channels_last)),
    }


def sgd(network: torch.nn.Module) -> torch.optim.Optimizer:
    """Returns SGD with the settings of published recipes."""
    return torch.optim.SGD(
        network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
