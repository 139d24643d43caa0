import io
import pathlib
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from stkd_keras.data.dataset import UNLABELED, Split
from stkd_keras.data.sources import threads
from stkd_keras.data.sources.decoding import decode_image
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.data.sources.image_files import FileSplit, load_files
from stkd_keras.errors import InputError

SIZE = (12, 16)
PIXELS = 12 * 16 * 3
UNLIMITED = 10**9


def write_image(path: pathlib.Path, height: int, width: int, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """Forty images of several sizes, modes and formats."""
    folder = tmp_path / "photos"
    kinds = [("jpg", "RGB"), ("png", "RGBA"), ("gif", "P"), ("png", "L"), ("jpg", "CMYK")]
    for index in range(40):
        extension, mode = kinds[index % len(kinds)]
        path = folder / f"class{index % 3}" / f"{index:02}.{extension}"
        write_image(path, 10 + index, 60 - index, index, mode)
    (folder / "read.me").touch()
    return folder


def labeled(folder: pathlib.Path) -> list[tuple[str, int]]:
    """(name, label) of the images, shuffled."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*g*")]
    names = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    return [(name, int(name[5])) for name in sorted(names, key=lambda name: name[-6:])]


def decoded(folder: pathlib.Path, names: list[str], size=SIZE) -> np.ndarray:
    return np.stack([decode_image((folder / name).read_bytes(), name, size) for name in names])


def pack(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """The folder, or a zip archive of its files in reverse order."""
    if kind == "folder":
        return folder
    archive = folder.with_suffix(f".{kind}")
    paths = sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in paths:
            file.write(path, path.relative_to(folder))
    return archive


def fetch_all(split: FileSplit, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split, fetched by a parallel pipeline."""
    indices = tf.data.Dataset.from_tensor_slices(np.arange(len(split), dtype=np.int32))
    batches = indices.batch(batch_size).map(split.fetch, num_parallel_calls=4)
    assert batches.element_spec[0].shape.as_list() == [None, *split.image_shape]
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def message_of(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


class TestLoadFiles:
    @pytest.mark.parametrize("kind", ["folder", "zip"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_in_memory(self, photos, kind, channels):
        tree, images = open_tree(pack(photos, kind)), labeled(photos)
        split, skipped = load_files(tree, images, SIZE, memory_limit=UNLIMITED, channels=channels)
        assert isinstance(split, Split)
        assert skipped == []
        for index, (name, _) in enumerate(images):
            expected = decode_image((photos / name).read_bytes(), name, SIZE, channels)
            np.testing.assert_array_equal(split.images[index], expected)
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == [label for _, label in images]
        # Otherwise TensorFlow would copy the array.
        assert split.images.ctypes.data % 64 == 0

    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_from_files_the_images_are_the_same(self, photos, kind):
        tree, images = open_tree(pack(photos, kind)), labeled(photos)
        in_memory, _ = load_files(tree, images, SIZE, memory_limit=UNLIMITED)
        in_files, skipped = load_files(tree, images, SIZE, memory_limit=0)
        assert isinstance(in_files, FileSplit)
        assert skipped == []
        assert (len(in_files), in_files.image_shape) == (40, (*SIZE, 3))
        np.testing.assert_array_equal(in_files.labels, in_memory.labels)
        fetched, labels = fetch_all(in_files, 7)
        np.testing.assert_array_equal(fetched, in_memory.images)
        np.testing.assert_array_equal(labels, in_memory.labels)
        assert (fetched.dtype, labels.dtype) == (np.uint8, np.int64)

    def test_images_of_exactly_the_limit_are_in_memory(self, photos):
        tree, images = open_tree(photos), labeled(photos)
        fits, _ = load_files(tree, images, SIZE, memory_limit=40 * PIXELS)
        doesnt, _ = load_files(tree, images, SIZE, memory_limit=40 * PIXELS - 1)
        assert isinstance(fits, Split)
        assert isinstance(doesnt, FileSplit)

    def test_images_without_label(self, photos):
        images = [(name, UNLABELED) for name, _ in labeled(photos)]
        split, _ = load_files(open_tree(photos), images, SIZE, memory_limit=UNLIMITED)
        assert split.labels.tolist() == [-1] * 40

    def test_no_files(self, photos):
        with pytest.raises(InputError, match="no test images") as error:
            load_files(open_tree(photos), [], SIZE, memory_limit=UNLIMITED, what="test images")
        assert str(photos) in message_of(error)

    def test_there_is_one_copy_of_the_images(self, tmp_path):
        for index in range(100):
            write_image(tmp_path / f"{index:03}.png", 8, 8, index)
        (tmp_path / "050.png").write_bytes(b"")
        tree = open_tree(tmp_path)
        images = [(name, 0) for name in tree.names()]
        size = (500, 500)
        load_files(tree, images[:2], size, memory_limit=UNLIMITED)
        tracemalloc.start()
        split, _ = load_files(tree, images, size, memory_limit=UNLIMITED, skip_bad_images=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Each thread has an image, with copies in NumPy and Pillow.
        allowed = 3 * threads.THREADS * 500 * 500 * 3
        assert split.images.nbytes <= peak <= 100 * 500 * 500 * 3 + allowed
        assert allowed < split.images.nbytes


class TestOriginalSize:
    @pytest.fixture
    def equal(self, tmp_path) -> pathlib.Path:
        for index in range(20):
            write_image(tmp_path / "equal" / f"{index:02}.png", 9, 7, index)
        return tmp_path / "equal"

    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_is_used(self, equal, kind):
        tree = open_tree(pack(equal, kind))
        names = tree.names()
        split, _ = load_files(tree, [(name, 0) for name in names], None, memory_limit=UNLIMITED)
        assert split.image_shape == (9, 7, 3)
        np.testing.assert_array_equal(split.images, decoded(equal, names, size=None))

    def test_is_used_without_memory(self, equal):
        tree = open_tree(equal)
        names = tree.names()
        split, _ = load_files(tree, [(name, 0) for name in names], None, memory_limit=0)
        assert split.image_shape == (9, 7, 3)
        np.testing.assert_array_equal(fetch_all(split, 8)[0], decoded(equal, names, size=None))

    @pytest.mark.parametrize("memory_limit", [UNLIMITED, 0])
    def test_must_be_the_same(self, equal, memory_limit):
        for index in (11, 12, 19):
            write_image(equal / f"{index}.png", 7, 9, index)
        tree = open_tree(equal)
        images = [(name, 0) for name in tree.names()]
        with pytest.raises(InputError, match="image_size") as error:
            load_files(tree, images, None, memory_limit=memory_limit, skip_bad_images=True)
        for part in ("11.png has 7x9", "00.png 9x7"):
            assert part in message_of(error)

    def test_is_that_of_the_first_readable_image(self, equal):
        for name in ("00.png", "01.png"):
            (equal / name).write_bytes(b"no image")
        tree = open_tree(equal)
        images = [(name, 0) for name in tree.names()]
        split, skipped = load_files(
            tree, images, None, memory_limit=UNLIMITED, skip_bad_images=True
        )
        assert len(split) == 18
        assert len(skipped) == 2
        write_image(equal / "07.png", 7, 9, 0)
        with pytest.raises(InputError, match=r"07.png has 7x9 pixels and 02.png 9x7"):
            load_files(tree, images, None, memory_limit=UNLIMITED, skip_bad_images=True)


class TestBadImages:
    @pytest.fixture
    def bad(self, photos) -> list[str]:
        """Four photos, broken in different ways, in loading order."""
        names = [labeled(photos)[index][0] for index in (5, 6, 20, 39)]
        # The first takes longest to decode.
        file = io.BytesIO()
        Image.new("RGB", (3000, 3000)).save(file, "JPEG")
        (photos / names[0]).write_bytes(file.getvalue()[:-20])
        (photos / names[1]).write_bytes(b"")
        (photos / names[2]).write_text("no image at all")
        (photos / names[3]).write_bytes((photos / names[3]).read_bytes()[:-40])
        return names

    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_the_first_of_them_is_named(self, photos, bad, kind):
        tree = open_tree(pack(photos, kind))
        messages = set()
        for _ in range(3):
            with pytest.raises(InputError, match="skip_bad_images") as error:
                load_files(tree, labeled(photos), SIZE, memory_limit=UNLIMITED, what="test images")
            messages.add(message_of(error))
        (message,) = messages
        for part in ("4 of 40 test images", str(tree.path), f"{bad[0]}: a broken or truncated"):
            assert part in message
        assert not any(name in message for name in bad[1:])

    @pytest.mark.parametrize("encoded", [False, True])
    def test_they_are_found_before_training_from_files(self, photos, bad, encoded):
        with pytest.raises(InputError, match=rf"4 of 40 .*{bad[0]}"):
            load_files(open_tree(photos), labeled(photos), SIZE, memory_limit=0, encoded=encoded)

    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_they_can_be_skipped(self, photos, bad, kind):
        split, skipped = load_files(
            open_tree(pack(photos, kind)),
            labeled(photos),
            SIZE,
            memory_limit=UNLIMITED,
            skip_bad_images=True,
        )
        good = [(name, label) for name, label in labeled(photos) if name not in bad]
        np.testing.assert_array_equal(split.images, decoded(photos, [name for name, _ in good]))
        assert split.labels.tolist() == [label for _, label in good]
        assert split.images.ctypes.data % 64 == 0
        self.check_list(skipped, bad)

    def test_they_can_be_skipped_without_memory(self, photos, bad):
        split, skipped = load_files(
            open_tree(photos), labeled(photos), SIZE, memory_limit=0, skip_bad_images=True
        )
        good = [(name, label) for name, label in labeled(photos) if name not in bad]
        images, labels = fetch_all(split, 8)
        np.testing.assert_array_equal(images, decoded(photos, [name for name, _ in good]))
        assert labels.tolist() == split.labels.tolist() == [label for _, label in good]
        self.check_list(skipped, bad)

    def check_list(self, skipped, bad):
        assert [line.partition(": ")[0] for line in skipped] == bad
        for line, reason in zip(skipped, ("truncated", "empty", "not an image", ""), strict=True):
            assert reason in line
            assert "\n" not in line

    def test_a_file_that_was_removed(self, photos):
        tree, images = open_tree(photos), labeled(photos)
        (photos / images[3][0]).unlink()
        with pytest.raises(InputError, match=images[3][0]) as error:
            load_files(tree, images, SIZE, memory_limit=UNLIMITED)
        assert "No such file" in message_of(error)
        split, skipped = load_files(
            tree, images, SIZE, memory_limit=UNLIMITED, skip_bad_images=True
        )
        assert len(split) == 39
        assert skipped[0].startswith(f"{images[3][0]}: ")

    @pytest.mark.parametrize("size", [SIZE, None])
    def test_no_readable_image(self, photos, bad, size):
        images = [(name, 0) for name in bad]
        with pytest.raises(InputError, match="4 of 4") as error:
            load_files(
                open_tree(photos), images, size, memory_limit=UNLIMITED, skip_bad_images=True
            )
        assert bad[0] in message_of(error)


class TestFetch:
    @pytest.fixture
    def split(self, photos) -> FileSplit:
        split, _ = load_files(open_tree(photos), labeled(photos), SIZE, memory_limit=0)
        return split

    def test_in_any_order_and_again(self, photos, split):
        indices = [3, 39, 0, 3]
        images, labels = tf.function(split.fetch)(tf.constant(indices))
        names = [labeled(photos)[index][0] for index in indices]
        np.testing.assert_array_equal(images, decoded(photos, names))
        np.testing.assert_array_equal(labels, split.labels[indices])

    def test_an_empty_batch(self, split):
        images, labels = split.fetch(tf.constant([], tf.int32))
        assert images.shape == (0, *SIZE, 3)
        assert labels.shape == (0,)

    def test_the_batch_size_is_static_if_that_of_the_indices_is(self, split):
        indices = tf.data.Dataset.range(40).map(lambda index: tf.cast(index, tf.int32))
        images, labels = indices.batch(8, drop_remainder=True).map(split.fetch).element_spec
        assert images.shape == (8, *SIZE, 3)
        assert labels.shape == (8,)

    def break_content(self, path):
        path.write_bytes(path.read_bytes()[:50])

    def remove(self, path):
        path.unlink()

    @pytest.mark.parametrize("damage", [break_content, remove])
    def test_a_file_that_breaks_later_is_named(self, photos, split, damage):
        name = labeled(photos)[12][0]
        damage(self, photos / name)
        with pytest.raises(tf.errors.InvalidArgumentError, match=name):
            fetch_all(split, 8)

    @pytest.mark.slow
    def test_a_process_can_exit_while_batches_are_made(self, photos, repository):
        program = (
            "import sys\n"
            "import tensorflow as tf\n"
            "from stkd_keras.data.sources.file_tree import open_tree\n"
            "from stkd_keras.data.sources.image_files import FileSplit\n"
            "tree = open_tree(sys.argv[1])\n"
            "files = [(name, 0) for name in tree.names() if name.endswith('jpg')]\n"
            "split = FileSplit(tree, files, (512, 512, 3))\n"
            "indices = tf.data.Dataset.from_tensors(tf.range(len(files))).repeat()\n"
            "batches = indices.map(split.fetch, num_parallel_calls=4).prefetch(4)\n"
            "iterators = [iter(batches) for _ in range(4)]\n"
            "print([len(next(iterator)[1]) for iterator in iterators])\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", program, str(photos)],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        assert run.stdout == "[16, 16, 16, 16]\n"


class TestProgress:
    def test_nothing_is_shown_for_a_few_images(self, photos, capsys):
        load_files(open_tree(photos), labeled(photos), SIZE, memory_limit=UNLIMITED)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("memory_limit", [0, UNLIMITED])
    def test_progress_is_shown_after_a_while(self, photos, monkeypatch, capsys, memory_limit):
        monkeypatch.setattr(threads, "PROGRESS_AFTER", 0.0)
        load_files(
            open_tree(photos),
            labeled(photos),
            SIZE,
            memory_limit=memory_limit,
            what="validation images",
        )
        shown = capsys.readouterr().out
        assert shown.count("validation images") == 1
        assert "40/40" in shown
