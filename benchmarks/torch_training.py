"""Distills many students at once in PyTorch, for torch_accuracy.py and gpu_comparison.py."""

import contextlib
import functools
import io
import itertools
import math
import pathlib
import sys

import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file
from torch.fx.experimental.optimization import fuse
from torch.nn.functional import cross_entropy, kl_div, one_hot, pad

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "support"))

import torch_networks

MOMENTUM, L2, WARM_UP = 0.9, 5e-4, 0.05
VALIDATION = 0.1
PADDING = 4
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(images: str, weights: str):
    """Returns images and labels as tensors by name, and the frozen teacher."""
    data = load_images(images)
    device = data["test_images"].device
    teacher = frozen(torch_networks.build("resnet56", 10, shortcut="identity"), weights, device)
    test, labels = data["test_images"].split(1000), data["test_labels"]
    with torch.inference_mode():
        found = torch.cat([teacher(normalized(pixels(x), IMAGENET)).argmax(1) for x in test])
    print(f"teacher: {100 * float((found == labels).float().mean()):.2f} %", flush=True)
    return data, teacher


def load_images(path: str) -> dict[str, torch.Tensor]:
    """Returns images and labels by name. The images of the file may be encoded."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name, values in arrays.items():
        if values.dtype.kind == "S":
            arrays[name] = np.stack([np.asarray(PIL.Image.open(io.BytesIO(x))) for x in values])
    return {name: torch.tensor(values, device=device) for name, values in arrays.items()}


def train(wave, rows, data: dict, teacher, steps: int) -> list[tuple[float, float, float]]:
    """Trains several students at once.

    Args:
        wave: the runs, each with `fraction`, `data_seed` and `seed`.
        rows: a `torch_accuracy.Row` for each run.
        data: tensors by name, as in the file of the images.
        teacher: maps normalized images (B, 3, 32, 32) to logits.
        steps: integer.

    Returns:
        The accuracies of each run on `torch_accuracy.SPLITS`, from 0 to 1.
    """
    device = data["train_images"].device
    torch.manual_seed(wave[0].seed)
    splits = [split(data["train_labels"].cpu().numpy(), run) for run in wave]
    learners = [Student(row, run.seed, steps, device) for run, row in zip(wave, rows, strict=True)]
    batches = Batches([indices for indices, _ in splits], wave, rows, steps, device)
    counter = torch.zeros(1, dtype=torch.int64, device=device)

    def step() -> None:
        with torch.no_grad():
            images, soft_labels, places = batches.draw(counter, data)
            teacher_logits = teacher(normalized(images, IMAGENET))
            images = normalized(images, CIFAR10)
        with concurrent(device, len(learners)) as streams:
            for learner, stream, part in zip(learners, streams, places, strict=True):
                with stream:
                    targets = soft_labels[part[: learner.row.batch_size]]
                    learner.learn(images[part], targets, teacher_logits[part], counter)
        counter.add_(1)

    run_graph(step, steps, counter, learners, device)
    scores = []
    for learner, (chosen, held_out) in zip(learners, splits, strict=True):
        train_images, labels = data["train_images"], data["train_labels"]
        sets = [(data["test_images"], data["test_labels"])]
        sets += [(train_images[i], labels[i]) for i in map(torch.as_tensor, (held_out, chosen))]
        scores.append(tuple(learner.accuracy(*each) for each in sets))
    return scores


class Batches:
    """The batches of all runs of a wave, joined in one tensor."""

    def __init__(self, images: list[np.ndarray], wave, rows, steps: int, device):
        sizes = [row.batch_size for row in rows]
        orders = [
            order(indices, size, steps, run.data_seed)
            for indices, size, run in zip(images, sizes, wave, strict=True)
        ]
        self.order = torch.tensor(np.concatenate(orders, axis=1), device=device)
        self.run = torch.tensor(np.repeat(np.arange(len(wave)), sizes), device=device)
        limits = np.repeat([steps * row.mixing for row in rows], sizes)
        self.mixed_steps = torch.tensor(limits, device=device)
        starts = np.cumsum([0, *sizes])
        places = [np.arange(start, stop) for start, stop in itertools.pairwise(starts)]
        clean_too = [i for i, row in enumerate(rows) if row.clean_soft_weight]
        clean = [places[i] for i in clean_too]
        self.clean = torch.tensor(np.concatenate([*clean, []]).astype(np.int64), device=device)
        end = starts[-1]
        for i in clean_too:
            places[i] = np.concatenate([places[i], np.arange(end, end + sizes[i])])
            end += sizes[i]
        self.places = [torch.tensor(each, device=device) for each in places]

    def draw(self, counter, data: dict):
        """Returns virtual samples and clean images, soft labels, and each run's positions."""
        index = self.order[counter][0]
        clean = pixels(augmented(data["train_images"][index]))
        labels = one_hot(data["train_labels"][index].long(), 10).float()
        share, draws = torch.rand(2, len(index), device=index.device)
        share = torch.where(counter < self.mixed_steps, share, 1.0)
        partner = (self.run + draws).argsort()  # A permutation within each run's images.
        wide = share[:, None, None, None]
        mixed = wide * clean + (1 - wide) * clean[partner]
        soft_labels = share[:, None] * labels + (1 - share[:, None]) * labels[partner]
        return torch.cat([mixed, clean[self.clean]]), soft_labels, self.places


class Learner:
    """A network and its optimizer, whose steps read and write tensors in place."""

    def __init__(self, network, seed: int, learning_rate: float, steps: int, device):
        self.network = network.to(device).train()
        initialize(self.network, seed)
        self.parameters = list(self.network.parameters())
        self.kernels = [i for i, p in enumerate(self.parameters) if p.ndim > 1]
        self.velocities = [torch.zeros_like(p) for p in self.parameters]
        rates = [learning_rate * schedule(step / steps) for step in range(steps)]
        self.rates = torch.tensor(rates, device=device)

    def descend(self, loss, counter) -> None:
        """Updates the weights like `stkd_keras.SGD`."""
        gradients = list(torch.autograd.grad(loss, self.parameters))
        with torch.no_grad():
            kernels = [self.parameters[i] for i in self.kernels]
            torch._foreach_add_([gradients[i] for i in self.kernels], kernels, alpha=L2)
            torch._foreach_mul_(self.velocities, MOMENTUM)
            torch._foreach_add_(self.velocities, gradients)
            torch._foreach_add_(gradients, self.velocities, alpha=MOMENTUM)
            torch._foreach_mul_(gradients, self.rates[counter][0])
            torch._foreach_sub_(self.parameters, gradients)

    def predict(self, images):
        """Returns the logits of uint8 images."""
        self.network.eval()
        with torch.inference_mode():
            parts = [self.network(normalized(pixels(x), CIFAR10)) for x in images.split(2500)]
        return torch.cat(parts)

    def accuracy(self, images, labels) -> float:
        """Returns the accuracy on unmixed images."""
        return float((self.predict(images).argmax(1) == labels).float().mean())


class Student(Learner):
    """A ResNet-8, trained with the losses of `SimilarityTransferDistiller`."""

    def __init__(self, row, seed: int, steps: int, device):
        network = torch_networks.build("resnet8", 10, shortcut="identity")
        super().__init__(network, seed, row.learning_rate, steps, device)
        self.row = row

    def learn(self, images, soft_labels, teacher_logits, counter) -> None:
        """Trains one step."""
        logits = self.network(images)
        size, temperature = len(soft_labels), self.row.temperature
        loss = self.row.label_weight * cross_entropy(logits[:size], soft_labels)
        on_mixed = soft_loss(teacher_logits[:size], logits[:size], temperature)
        loss = loss + self.row.soft_weight * on_mixed
        if self.row.clean_soft_weight:
            on_clean = soft_loss(teacher_logits[size:], logits[size:], temperature)
            loss = loss + self.row.clean_soft_weight * on_clean
        self.descend(loss, counter)


def soft_loss(teacher, student, temperature: float):
    """Returns T^2 KL(softmax(t / T) || softmax(s / T)), averaged over the batch."""
    divergence = kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def split(labels: np.ndarray, run) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the training and held-out images, stratified by class."""
    generator = np.random.default_rng(run.data_seed)
    chosen, held_out = [], []
    for label in range(10):
        images = generator.permutation(np.flatnonzero(labels == label))
        first = round(VALIDATION * len(images))
        held_out.append(images[:first])
        chosen.append(images[first : first + round(run.fraction * (len(images) - first))])
    return np.concatenate(chosen), np.concatenate(held_out)


def order(indices: np.ndarray, batch_size: int, steps: int, data_seed: int) -> np.ndarray:
    """Returns the image indices of all steps (steps, batch_size), from shuffled epochs."""
    generator = np.random.default_rng((data_seed, 1))
    epochs = math.ceil(steps * batch_size / len(indices))
    images = np.concatenate([generator.permutation(indices) for _ in range(epochs)])
    return images[: steps * batch_size].reshape(steps, batch_size)


def schedule(progress: float) -> float:
    """Returns the learning rate's factor: linear warm-up, then cosine decay."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def initialize(module, seed: int) -> None:
    """Draws weights like Keras's he_normal."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            deviation = math.sqrt(2 / parameter[0].numel()) / 0.87962566103423978
            values = torch.empty(parameter.shape)
            torch.nn.init.trunc_normal_(
                values, 0, deviation, -2 * deviation, 2 * deviation, generator=generator
            )
            parameter.data.copy_(values)
    torch.nn.init.zeros_(module.get_submodule(module.head).bias)


def frozen(module, weights: str, device):
    """Returns the teacher in bfloat16, with batch normalization folded into the convolutions."""
    found = module.load_state_dict(load_file(weights), strict=False)
    if found.unexpected_keys or not all("num_batches" in name for name in found.missing_keys):
        raise ValueError(f"{weights} doesn't fit this teacher: {found}")
    module = fuse(module.eval()).to(device).requires_grad_(False)
    module = module.to(torch.bfloat16).to(memory_format=torch.channels_last)

    def logits(images):
        images = images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        return module(images).float()

    return logits


def augmented(images):
    """Crops images at random after padding with black, and flips half of them."""
    device, (size, side) = images.device, images.shape[:2]
    padded = pad(images, (0, 0, *[PADDING] * 4))
    top, left = torch.randint(0, 2 * PADDING + 1, (2, size, 1), device=device)
    row = column = torch.arange(side, device=device)
    mirrored = torch.rand(size, 1, device=device) < 0.5
    column = left + torch.where(mirrored, side - 1 - column, column)
    number = torch.arange(size, device=device)[:, None, None]
    return padded[number, (top + row)[:, :, None], column[:, None]]


def pixels(images):
    """Converts uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div(255)


def normalized(images, statistics):
    """Normalizes images by channel means and standard deviations."""
    mean, deviation = (channels(each, images.device) for each in statistics)
    return (images - mean) / deviation


@functools.cache
def channels(values: tuple[float, ...], device):
    """Returns values as a cached tensor, since a CUDA graph can't copy from the host."""
    return torch.tensor(values, device=device)[:, None, None]


@contextlib.contextmanager
def concurrent(device, count: int):
    """Yields a context for each learner, so that their work on a GPU may overlap."""
    if device.type != "cuda":
        yield [contextlib.nullcontext()] * count
        return
    while len(_streams) < count:
        _streams.append(torch.cuda.Stream())
    current = torch.cuda.current_stream()
    for stream in _streams[:count]:
        stream.wait_stream(current)
    yield [torch.cuda.stream(stream) for stream in _streams[:count]]
    for stream in _streams[:count]:
        current.wait_stream(stream)


_streams: list[torch.cuda.Stream] = []


def run_graph(step, steps: int, counter, learners: list[Learner], device) -> None:
    """Runs the steps, on a GPU by replaying a CUDA graph."""
    run, _ = captured(step, counter, learners, device)
    for _ in range(steps):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()


def captured(step, counter, learners: list[Learner], device):
    """Returns two functions: one runs a step (a CUDA graph on a GPU), one restores the start."""
    state = [
        tensor
        for each in learners
        for tensor in (*each.network.state_dict().values(), *each.velocities)
    ]
    before = [tensor.clone() for tensor in state]

    def begin_anew() -> None:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        counter.zero_()

    if device.type != "cuda":
        return step, begin_anew
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    begin_anew()
    return graph.replay, begin_anew
