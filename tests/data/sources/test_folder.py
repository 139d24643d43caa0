import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.data.sources.folder import folder_layout, unlabeled_files
from stkd_keras.data.sources.image_files import load_files
from stkd_keras.errors import InputError

CLUTTER = (
    ".DS_Store",
    "train/Thumbs.db",
    "train/desktop.ini",
    "train/._cat.jpg",
    "train/cat/.hidden.jpg",
    "train/cat/Thumbs.db",
    "train/.ipynb_checkpoints/a.jpg",
    "train/__MACOSX/a.jpg",
    "__MACOSX/train/cat/a.jpg",
    "test/.git/config",
)


def make(root: pathlib.Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    root = tmp_path / "photos"
    make(root, "train/cat/b.jpg", "train/cat/a.png", "train/dog/a.png", "train/Emu/x/y/a.jpeg")
    make(root, "test/cat/a.png", "test/dog/a.png")
    return root


def refusal(function, directory) -> str:
    with pytest.raises(InputError) as error:
        function(directory)
    message = str(error.value)
    assert "\n" not in message
    return message


class TestFolderLayout:
    def test_classes_are_the_folders_of_train_in_alphabetical_order(self, photos):
        layout = folder_layout(photos)
        assert layout.class_names == ("Emu", "cat", "dog")
        assert layout.splits == {
            "train": [
                ("train/Emu/x/y/a.jpeg", 0),
                ("train/cat/a.png", 1),
                ("train/cat/b.jpg", 1),
                ("train/dog/a.png", 2),
            ],
            "test": [("test/cat/a.png", 1), ("test/dog/a.png", 2)],
        }

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_validation_by_any_of_its_names(self, photos, name):
        make(photos, f"{name}/dog/a.png")
        layout = folder_layout(photos)
        assert layout.splits["validation"] == [(f"{name}/dog/a.png", 2)]
        assert set(layout.splits) == {"train", "validation", "test"}

    def test_a_path_may_be_a_string(self, photos):
        assert folder_layout(str(photos)) == folder_layout(photos)

    def test_the_names_are_those_of_the_tree(self, photos):
        layout = folder_layout(photos)
        for split in layout.splits.values():
            images, _ = load_files(open_tree(photos), split, None, memory_limit=10**6)
            assert images.labels.tolist() == [label for _, label in split]

    def test_links_are_followed(self, photos, tmp_path):
        make(tmp_path / "elsewhere", "a.png")
        (photos / "train" / "fox").symlink_to(tmp_path / "elsewhere")
        assert ("train/fox/a.png", 3) in folder_layout(photos).splits["train"]

    def test_system_files_are_ignored(self, photos):
        before = folder_layout(photos)
        make(photos, *CLUTTER)
        assert folder_layout(photos) == before

    def test_other_folders_are_ignored(self, photos):
        before = folder_layout(photos)
        make(photos, "unlabeled/a.png", "notes.txt")
        assert folder_layout(photos) == before

    def test_every_other_file_counts_as_an_image(self, photos):
        (photos / "train" / "cat" / "notes.txt").write_text("no image")
        layout = folder_layout(photos)
        assert ("train/cat/notes.txt", 1) in layout.splits["train"]
        with pytest.raises(InputError, match=r"train/cat/notes\.txt: not an image"):
            load_files(open_tree(photos), layout.splits["train"], None, memory_limit=10**6)

    @settings(deadline=None)
    @given(
        names=st.lists(
            st.text("abcXYZ019 _-éß", min_size=1, max_size=8).map(str.strip).filter(bool),
            min_size=2,
            max_size=5,
            unique_by=str.lower,
        ),
        seed=st.integers(0, 2**32),
    )
    def test_any_names_of_classes(self, tmp_path_factory, names, seed):
        root = tmp_path_factory.mktemp("folder")
        make(root, *(f"train/{name}/a.png" for name in names))
        tested = names[: 1 + seed % len(names)]
        make(root, *(f"test/{name}/b.png" for name in tested))
        layout = folder_layout(root)
        assert layout.class_names == tuple(sorted(names))
        for split, expected in (("train", names), ("test", tested)):
            found = [name.split("/")[1] for name, _ in layout.splits[split]]
            assert sorted(found) == sorted(expected)
            labels = [label for _, label in layout.splits[split]]
            assert [layout.class_names[label] for label in labels] == found


class TestWrongFolders:
    def test_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        for name in ("file", "nowhere"):
            assert str(tmp_path / name) in refusal(folder_layout, tmp_path / name)

    def test_no_train(self, photos):
        (photos / "train").rename(photos / "Training")
        message = refusal(folder_layout, photos)
        assert f"{photos} has no folder train" in message

    def test_no_test(self, photos):
        (photos / "test").rename(photos / "val")
        message = refusal(folder_layout, photos)
        assert f"{photos} has no folder test" in message
        assert "move some images" in message

    @pytest.mark.parametrize("split", ["train", "test", "val"])
    def test_without_classes(self, tmp_path, split):
        make(tmp_path, "train/cat/a.png", "train/dog/a.png", "test/cat/a.png", "val/cat/a.png")
        (tmp_path / split).rename(tmp_path / "old")
        (tmp_path / split).mkdir()
        message = refusal(folder_layout, tmp_path)
        assert f"{tmp_path / split} has no class folders" in message

    def test_images_without_classes(self, tmp_path):
        make(tmp_path, "train/a.png", "train/b.png", "test/a.png")
        message = refusal(folder_layout, tmp_path)
        assert f"{tmp_path / 'train'} has no class folders" in message

    def test_one_class(self, tmp_path):
        make(tmp_path, "train/cat/a.png", "test/cat/a.png")
        message = refusal(folder_layout, tmp_path)
        assert f"{tmp_path / 'train'} has only one class folder, 'cat'" in message

    @pytest.mark.parametrize("split", ["train", "test", "val"])
    @pytest.mark.parametrize("inside", [None, ".DS_Store", "empty/.hidden"])
    def test_an_empty_class(self, photos, split, inside):
        folder = photos / split / "dog"
        for path in folder.rglob("*"):
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        if inside:
            make(folder, inside)
        message = refusal(folder_layout, photos)
        assert f"{folder} has no images" in message

    @pytest.mark.parametrize("split", ["train", "test", "val"])
    def test_an_image_outside_of_the_classes(self, photos, split):
        make(photos, "val/cat/a.png", f"{split}/lost.png")
        message = refusal(folder_layout, photos)
        assert f"{photos / split / 'lost.png'} isn't in a class folder" in message

    @pytest.mark.parametrize("split", ["test", "val"])
    @pytest.mark.parametrize("is_empty", [False, True])
    def test_a_class_that_train_does_not_have(self, photos, split, is_empty):
        (photos / split / "cow").mkdir(parents=True)
        if not is_empty:
            make(photos, f"{split}/cow/a.png")
        message = refusal(folder_layout, photos)
        assert f"{photos / split / 'cow'} is of a class" in message

    def test_two_folders_for_validation(self, photos):
        make(photos, "val/cat/a.png", "valid/cat/a.png")
        assert f"{photos} has val and valid" in refusal(folder_layout, photos)


class TestUnlabeledFiles:
    def test_all_images_are_sorted(self, tmp_path):
        make(tmp_path, "b.png", "a/z.jpg", "a/b/c.gif", "é.png", "notes.txt")
        assert unlabeled_files(tmp_path) == ["a/b/c.gif", "a/z.jpg", "b.png", "notes.txt", "é.png"]

    def test_their_names_are_those_of_the_tree(self, tmp_path):
        make(tmp_path, "only/a.png", "only/b/c.png")
        images = [(name, -1) for name in unlabeled_files(tmp_path)]
        split, _ = load_files(open_tree(tmp_path), images, None, memory_limit=10**6)
        np.testing.assert_array_equal(split.labels, [-1, -1])

    def test_system_files_are_ignored(self, tmp_path):
        make(tmp_path, "a.png", "b/.DS_Store", "b/Thumbs.db", ".git/a.png")
        assert unlabeled_files(tmp_path) == ["a.png"]

    @pytest.mark.parametrize("inside", [None, ".DS_Store", "a/Thumbs.db"])
    def test_none(self, tmp_path, inside):
        if inside:
            make(tmp_path, inside)
        assert f"{tmp_path} and its subfolders contain no images" in refusal(
            unlabeled_files, tmp_path
        )

    def test_no_folder(self, tmp_path):
        assert str(tmp_path / "nowhere") in refusal(unlabeled_files, tmp_path / "nowhere")
