"""Where trained teachers are kept."""

import dataclasses

import numpy as np

from models.teachers.sources import TeacherSource
from models.teachers.training import teachers_to_train
from stkd_keras import data


def test_teachers_without_a_complete_run_have_to_be_trained(tmp_path):
    split = data.Split(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2)
    half = (0.5,) * 3
    dataset = data.Dataset("made", "1.0.0", ("ant", "bee"), half, half, False, split, split)
    sources = [
        TeacherSource("a.keras"),
        TeacherSource("resnet8", weights="w.pth"),
        TeacherSource("ResNet20"),
        TeacherSource("mobile_half"),
    ]

    def names(epochs=3, augment="standard"):
        return teachers_to_train(
            sources,
            dataset=dataset,
            folder=tmp_path,
            epochs=epochs,
            validation_fraction=None,
            data_seed=0,
            augment=augment,
        )

    assert names() == ["ResNet20", "mobile_half"]
    # The name must not change: teachers that earlier versions trained have to be found.
    trained = tmp_path / "made-1.0.0-resnet20-169a6e16"
    trained.mkdir()
    for file in ("teacher.keras", "metrics.json"):
        (trained / file).touch()
    assert names() == ["mobile_half"]
    assert names(epochs=4) == ["ResNet20", "mobile_half"]
    assert names(augment="none") == ["ResNet20", "mobile_half"]


def test_a_pretrained_teacher_is_only_trained_if_its_classes_arent_the_datas():
    for source in (
        TeacherSource("efficientnet_lite0", "imagenet"),
        TeacherSource("keras.applications:VGG16"),
    ):
        assert source.has_to_be_trained(2)
        assert not source.has_to_be_trained(1000)
        assert not dataclasses.replace(source, classes="names.txt").has_to_be_trained(2)
        assert source.files == []
    assert not TeacherSource("keras.applications:VGG16", "w.h5").has_to_be_trained(2)
