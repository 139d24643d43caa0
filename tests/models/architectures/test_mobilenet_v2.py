"""MobileNetV2's width, read from a checkpoint."""

import numpy as np
import pytest

from models.architectures.mobilenet_v2 import options_from_state

CHANNELS = {"conv1.0.weight": 32}
CHANNELS |= {f"blocks.{i}.0.conv.6.weight": c for i, c in enumerate((16, 24, 32, 64, 96, 160, 320))}


@pytest.mark.parametrize("width", [1 / 16, 0.355, 0.5, 2 / 3, 0.75, 1.0, 1.33, 4 / 3, 1.4])
def test_the_width_is_inferred_from_a_state_dict(width):
    state = {name: np.empty(int(channels * width)) for name, channels in CHANNELS.items()}
    state["conv2.0.weight"] = np.empty(int(1280 * max(width, 1)))
    found = options_from_state(state)["width"]
    for name, channels in CHANNELS.items():
        assert int(channels * found) == len(state[name])
    assert int(1280 * max(found, 1)) == len(state["conv2.0.weight"])


def test_a_state_dict_of_another_network_gives_no_width():
    assert options_from_state({"fc.weight": np.empty((10, 64))}) == {}
    assert options_from_state({"conv1.0.weight": np.empty(())}) == {}
