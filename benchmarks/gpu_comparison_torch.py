"""Trains networks side by side in PyTorch, for gpu_comparison.py."""

import time
import types

import numpy as np
import scipy.optimize
import scipy.special
import torch
import torch_training as base
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, one_hot

TEMPERATURE, SOFT_WEIGHT, LABEL_WEIGHT = 4.0, 0.9, 0.1
DKD_BETA = 8.0
LEARNING_RATE = 0.1  # With 128 images per step.
EVALUATION = 10.0  # Seconds, at most.
BINS = 15


def load(path: str) -> dict:
    """Returns the images and labels to train on, to hold out and to test on."""
    data = base.load_images(path)
    images, labels = data["train_images"], data["train_labels"].long()
    print(torch.cuda.get_device_name() if images.is_cuda else "CPU", flush=True)
    options = types.SimpleNamespace(fraction=1.0, data_seed=0)
    parts = map(torch.as_tensor, base.split(labels.cpu().numpy(), options))
    chosen, held_out = ((images[part], labels[part]) for part in parts)
    return {
        "train": chosen,
        "held_out": held_out,
        "test": (data["test_images"], data["test_labels"]),
    }


def load_teacher(name: str, weights):
    """Returns the frozen teacher, a function from normalized images to logits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return base.frozen(base.torch_networks.build(name, 10), str(weights), device)


def save(learner, path) -> None:
    """Writes the weights."""
    state = learner.network.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))


def train(runs: list, data: dict, teacher, deadline: float) -> list:
    """Trains networks side by side, fewer if there isn't the time for all.

    Args:
        runs: a `gpu_comparison.Run` for each network, with equal steps and batch size.
        data: from `load`.
        teacher: from `load_teacher`; None if no loss needs it.
        deadline: the value of `time.monotonic` at which everything has to be done.
    """
    images, labels = data["train"]
    device, counter = images.device, torch.zeros(1, dtype=torch.int64, device=images.device)
    while runs:
        steps, learners = runs[0].steps, [Network(run, device) for run in runs]
        order = base.order(np.arange(len(images)), runs[0].batch_size, steps, 0)
        step = make_step(learners, images, labels, torch.tensor(order).to(device), teacher, counter)
        go, begin_anew = base.captured(step, counter, learners, device)
        if images.is_cuda:
            seconds_per_step(go, 20)  # The first steps of a graph are slower.
        seconds = steps * seconds_per_step(go, 100 if images.is_cuda else 1)
        left = deadline - time.monotonic() - EVALUATION
        names = ", ".join(f"{run.network} {run.row} {run.seed}" for run in runs)
        print(f"{names}: {seconds:.0f} s, of {left:.0f} s left", flush=True)
        if seconds <= left:
            begin_anew()
            torch.manual_seed(0)
            for tenth in np.array_split(np.arange(steps), 10):
                seconds_per_step(go, len(tenth))
                print(f"{deadline - time.monotonic():.0f} s left", flush=True)
            return learners
        runs = runs[: max(0, min(len(runs) - 1, int(len(runs) * left / seconds)))]
    return []


def seconds_per_step(go, steps: int) -> float:
    """Runs steps and returns their mean time."""
    start = time.monotonic()
    for _ in range(steps):
        go()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.monotonic() - start) / max(1, steps)


def scores(learner, data: dict) -> dict[str, float]:
    """Scores a network on the test images, also with the temperature of the held-out images."""
    predicted = (
        (learner.predict(images).cpu().numpy(), labels.cpu().numpy())
        for images, labels in (data["test"], data["held_out"])
    )
    (logits, labels), held_out = predicted
    temperature = best_temperature(*held_out)
    result = {"accuracy": float((logits.argmax(1) == labels).mean()), "temperature": temperature}
    result["nll"], result["ece"] = nll_and_ece(logits, labels)
    result["nll_after"], result["ece_after"] = nll_and_ece(logits / temperature, labels)
    return result


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature from 0.05 to 20 with the smallest negative log-likelihood."""
    found = scipy.optimize.minimize_scalar(
        lambda x: nll_and_ece(logits / np.exp(x), labels)[0],
        bounds=np.log([0.05, 20.0]),
        method="bounded",
    )
    return float(np.exp(found.x))


def nll_and_ece(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns the negative log-likelihood and the expected calibration error."""
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    confidence = np.exp(log_probabilities.max(1))
    bins = np.ceil(BINS * confidence).astype(int)
    gaps = np.bincount(bins, weights=(logits.argmax(1) == labels) - confidence)
    nll = -log_probabilities[np.arange(len(labels)), labels].mean()
    return float(nll), float(np.abs(gaps).sum() / len(labels))


class Network(base.Learner):
    """A network that is trained in bfloat16 on a GPU."""

    def __init__(self, run, device):
        options = {"shortcut": "identity"} if run.network.startswith("resnet") else {}
        network = base.torch_networks.build(run.network, 10, **options)
        network = network.to(memory_format=torch.channels_last)
        rate = LEARNING_RATE * run.batch_size / 128
        super().__init__(network, run.seed, rate, run.steps, device)
        self.kind, self.loss = ROWS[run.row]

    def learn(self, images, labels, teacher_logits, counter) -> None:
        """Trains one step."""
        images = images.contiguous(memory_format=torch.channels_last)
        # A CUDA graph can't use autocast's cache.
        options = {"enabled": images.is_cuda, "cache_enabled": False}
        with torch.autocast(images.device.type, torch.bfloat16, **options):
            logits = self.network(images)
        self.descend(self.loss(logits.float(), teacher_logits, labels), counter)


def make_step(learners: list[Network], images, labels, order, teacher, counter):
    """Returns a function that trains all networks for one step."""
    kinds = list(dict.fromkeys(learner.kind for learner in learners))

    def step() -> None:
        teacher_logits = dict.fromkeys(kinds)
        with torch.no_grad():
            index = order[counter][0]
            batches = draw(images[index], labels[index], counter < len(order) // 2)
            if teacher is not None:
                found = teacher(torch.cat([batches[kind][0] for kind in kinds]))
                teacher_logits = dict(zip(kinds, found.chunk(len(kinds)), strict=True))
        with base.concurrent(counter.device, len(learners)) as streams:
            for learner, stream in zip(learners, streams, strict=True):
                with stream:
                    learner.learn(*batches[learner.kind], teacher_logits[learner.kind], counter)
        counter.add_(1).remainder_(len(order))

    return step


def draw(images, labels, is_first_half) -> dict[str, tuple]:
    """Returns normalized images and soft labels by kind; every kind comes from the same draws."""
    images, labels = base.pixels(base.augmented(images)), one_hot(labels, 10).float()
    share, ranks = torch.rand(2, len(images), device=images.device)
    partner = ranks.argsort()

    def blended(share):
        wide = share[:, None, None, None]
        return wide * images + (1 - wide) * images[partner], share

    found = {
        "clean": (images, torch.ones_like(share)),
        "mixed": blended(share),
        "half": blended(torch.where(is_first_half, share, 1.0)),
        "cut": cut(images, images[partner], share),
    }
    return {
        kind: (base.normalized(x, base.CIFAR10), torch.lerp(labels[partner], labels, part[:, None]))
        for kind, (x, part) in found.items()
    }


def cut(images, others, share):
    """Pastes boxes like `stkd_keras.CutMix`; returns the images and the shares that are left."""
    side = images.shape[2]
    length = (side * (1 - share).sqrt()).floor()[:, None]
    center = torch.rand(2, len(images), 1, device=images.device)
    first = (side * center).floor() - (length / 2).floor()
    pixel = torch.arange(side, device=images.device)
    rows, columns = (first <= pixel) & (pixel < first + length)
    box = rows[:, :, None] & columns[:, None]
    return torch.where(box[:, None], others, images), 1 - box.float().mean((1, 2))


def ce(student, teacher, labels):
    """Returns the cross-entropy with the labels."""
    return cross_entropy(student, labels)


def kd(student, teacher, labels):
    """Returns the loss of `SimilarityTransferDistiller`."""
    soft = base.soft_loss(teacher, student, TEMPERATURE)
    return LABEL_WEIGHT * cross_entropy(student, labels) + SOFT_WEIGHT * soft


def dkd(student, teacher, labels):
    """Returns the cross-entropy and the loss of `stkd_keras.methods.DKD`."""
    is_target, loss = labels > 0, cross_entropy(student, labels)

    def decoupled(logits):
        found, others = logits.log_softmax(1), logits.masked_fill(is_target, -1e9)
        pair = found.where(is_target, 0.0).sum(1), found.where(~is_target, -1e9).logsumexp(1)
        return torch.stack(pair, 1), others.log_softmax(1)

    pairs = zip(decoupled(student / TEMPERATURE), decoupled(teacher / TEMPERATURE), strict=True)
    for weight, (s, t) in zip((1.0, DKD_BETA), pairs, strict=True):
        loss = loss + weight * TEMPERATURE**2 * kl_div(s, t, reduction="batchmean", log_target=True)
    return loss


def dist(student, teacher, labels):
    """Returns the cross-entropy and the loss of `stkd_keras.methods.DIST`."""
    loss, probabilities = cross_entropy(student, labels), (student.softmax(1), teacher.softmax(1))
    for axis in (0, 1):
        s, t = (values - values.mean(axis, keepdim=True) for values in probabilities)
        loss = loss + 1 - cosine_similarity(s, t, dim=axis).mean()
    return loss


# The images and the loss of each row.
ROWS = {
    "ce": ("clean", ce),
    "kd": ("clean", kd),
    "dkd": ("clean", dkd),
    "dist": ("clean", dist),
    "stkd": ("mixed", kd),
    "stkd, mixing in the first half": ("half", kd),
    "stkd with CutMix": ("cut", kd),
}
