"""PyTorch state dicts of the zoo's ResNets."""

import numpy as np


def random_state(model):
    """A state dict for a ResNet of the zoo, with random values, in PyTorch's names and layouts."""
    rng = np.random.default_rng(0)
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
    names |= {"moving_variance": "running_var", "kernel": "weight"}
    state = {}
    for layer in model.layers:
        module = layer.name.replace("_", ".")
        for weight in layer.weights:
            shape = weight.shape if len(weight.shape) < 4 else np.array(weight.shape)[[3, 2, 0, 1]]
            if len(weight.shape) == 2:
                shape = weight.shape[::-1]
            name = names.get(weight.name, weight.name)
            state[f"{module}.{name}"] = rng.uniform(0.5, 1.5, shape).astype("float32")
    return state
