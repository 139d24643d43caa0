"""MobileNetV2's options."""

import keras
import numpy as np
import pytest

import models
from models.architectures.mobilenet_v2 import options_from_state
from stkd_keras.errors import InputError

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


def test_output_stride_32_gives_the_feature_maps_of_keras():
    published = keras.applications.MobileNetV2((224, 224, 3), weights=None)
    student = models.build("mobilenet_v2:width=1:output_stride=32", (224, 224, 3), 10)
    blocks = {"stage1": 2, "stage2": 5, "stage3": 12, "stage4": 16}
    ours = models.features(student, list(blocks)).output
    for stage, block in blocks.items():
        assert ours[stage].shape == published.get_layer(f"block_{block}_project_BN").output.shape


def test_another_output_stride_is_refused():
    with pytest.raises(InputError, match="output_stride is 8; expected 16, or 32"):
        models.build("mobilenet_v2:output_stride=8", (224, 224, 3), 10)
