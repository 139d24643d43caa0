"""Tests of the layers that adapt the student's features."""

import numpy as np
import pytest
from every_method import make


@pytest.mark.parametrize(
    ("student", "teacher"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 6), (4, 5)), ((3, 3), (3, 3))]
)
@pytest.mark.parametrize("name", ["fitnet", "ab"])
def test_a_regressor_gives_the_teachers_shape(name, student, teacher):
    maps = {"m": np.ones((2, *student, 3), "float32")}, {"m": np.ones((2, *teacher, 5), "float32")}
    assert make(name, features=["m"])(*maps, np.eye(2)).shape == (2,)
