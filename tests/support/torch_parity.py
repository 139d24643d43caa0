"""Runs the PyTorch networks that the zoo's models are compared with."""

import torch
import torch_networks
from safetensors.numpy import save_file
from torch import Tensor, nn
from zoo_models import CIFAR100


def randomized(name, num_classes=10):
    """Builds the network of a zoo name with options, in inference mode, with random weights."""
    name, *given = name.split(":")
    options = dict(option.split("=") for option in given)
    if "width" in options:
        options["width"] = float(options["width"])
    if name.startswith("resnet") and not name.endswith("x4") and int(name[6:]) not in (18, 34, 50):
        options = {"shortcut": "identity", **options}
    network = torch_networks.build(name, num_classes, **options).eval()
    randomize(network, seed=1)
    return network


def features(network, images):
    """The network's features, channels last, on pixels that are normalized with CIFAR100."""
    x = (images / 255 - CIFAR100["mean"]) / CIFAR100["std"]
    with torch.inference_mode():
        x = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)
        found = torch_networks.features(network, x)
    return {
        name: value.numpy().transpose(0, 2, 3, 1) if value.ndim == 4 else value.numpy()
        for name, value in found.items()
    }


def save(network, path):
    """Writes the network's state dict as safetensors."""
    save_file({name: value.numpy() for name, value in network.state_dict().items()}, path)


def load(network, state):
    """Loads a state dict of NumPy arrays; every name has to match."""
    network.load_state_dict({n: torch.tensor(t) for n, t in state.items()}, strict=True)


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Gives every parameter and every batch statistic a random value.

    Kernels are scaled layer by layer to outputs of variance 1 on a small random batch, so that
    depth neither lets values explode nor makes all images alike.
    """
    generator = torch.Generator().manual_seed(seed)

    def rescale(layer: nn.Module, _, output: Tensor) -> Tensor:
        scale = 1 / output.transpose(0, 1).flatten(1).std(1).clamp(min=0.2)
        for parameter in layer.parameters():
            parameter.mul_(scale.view(-1, *[1] * (parameter.ndim - 1)))
        return output * scale.view(-1, *[1] * (output.ndim - 2))

    def center(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        mean = inputs[0].mean((0, 2, 3))
        layer.running_mean.copy_(mean + 0.3 * torch.randn(mean.shape, generator=generator))

    hooks = []
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.bias.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            hooks.append(layer.register_forward_pre_hook(center))
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            for parameter in layer.parameters():
                scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.normal_(0, scale, generator=generator)
            hooks.append(layer.register_forward_hook(rescale))
    was_training = module.training
    colors, noise = (torch.randn(8, 3, side, side, generator=generator) for side in (1, 32))
    module.eval()(0.7 * colors + 0.7 * noise)
    module.train(was_training)
    for hook in hooks:
        hook.remove()
