import pytest
from archive_files import pack
from image_folders import CINIC_CLASSES, cinic10_files

from stkd_keras.data.cinic10 import Cinic10, layout
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.errors import InputError


@pytest.mark.parametrize(("kind", "top"), [("folder", ""), ("tar.gz", "./"), ("zip", "CINIC-10/")])
def test_the_layout(tmp_path, kind, top):
    files = {top + name: content for name, content in cinic10_files().items()}
    class_names, splits = layout(open_tree(pack(kind, tmp_path / "CINIC-10", files)))
    assert class_names == tuple(CINIC_CLASSES)
    sizes = {split: len(images) for split, images in splits.items()}
    assert sizes == {"train": 20, "validation": 10, "test": 10}
    assert splits["test"][3] == ("test/cat/cifar10-3.png", 3)
    for images in splits.values():
        assert all(class_names[label] == name.split("/")[1] for name, label in images)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"valid": None}, "valid/airplane"),
        ({"test/truck/cifar10-3.png": None}, "test/truck"),
        ({"test/lorry/1.png": b""}, "test/lorry"),
    ],
)
def test_a_copy_that_is_not_official(tmp_path, changes, said):
    files = cinic10_files()
    for path, content in changes.items():
        if content is None:
            files = {name: files[name] for name in files if not name.startswith(path)}
        else:
            files[path] = content
    with pytest.raises(InputError, match="of CINIC-10") as error:
        layout(open_tree(pack("folder", tmp_path, files)))
    message = str(error.value)
    assert "\n" not in message
    assert said in message
    assert str(tmp_path) in message


def test_tfds_has_no_checksum():
    assert Cinic10.url_infos == {}
