"""Crops of encoded files are what Pillow and NumPy give, and batches are repeatable."""

import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from stkd_keras import data
from stkd_keras.data import photo
from stkd_keras.data.dataset import Joined
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.data.sources.image_files import FileSplit, name_broken_files
from stkd_keras.errors import InputError

SHAPE = (24, 24, 3)


def picture(height, width, seed=0) -> Image.Image:
    """A smooth picture, which JPEG keeps."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def save(path: pathlib.Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Thirty photographs of several sizes and kinds in train, six in test."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    kinds = [("jpg", "RGB", {}), ("jpg", "L", {"progressive": True}), ("png", "RGBA", {}),
             ("jpg", "RGB", {"exif": exif}), ("jpg", "CMYK", {})]  # fmt: skip
    for number in range(36):
        extension, mode, options = kinds[number % 5]
        path = tmp_path / ("train" if number < 30 else "test") / f"class{number % 2}"
        image = picture(40 + number, 90 - number, number).convert(mode)
        save(path / f"{number:02}.{extension}", image, quality=95, **options)
    return tmp_path


def load(folder, **options) -> data.Dataset:
    return data.load("folder", folder, image_size=SHAPE[:2], encoded=True, **options)


def area_average(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mean of the input pixels under each output pixel."""

    def weights(size, new):
        edges = np.arange(new + 1) * size / new
        starts = np.arange(size)
        overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
        return np.clip(overlap, 0, None) * new / size

    return np.einsum(
        "ih,hwc,jw->ijc", weights(pixels.shape[0], height), pixels, weights(pixels.shape[1], width)
    )


def by_hand(image: Image.Image, crop, reduction=1) -> np.ndarray:
    """Cuts a crop out of an upright image that is larger than the result."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    scale = np.sqrt(np.float32(image.width * image.height))
    height, width = (
        min(round(c * scale), s) for c, s in zip(crop[:2], pixels.shape[:2], strict=True)
    )
    top = int(crop[2] * (pixels.shape[0] - height + 1))
    left = int(crop[3] * (pixels.shape[1] - width + 1))
    if reduction > 1:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95)
        reduced = Image.open(file)
        reduced.draft("RGB", (image.width // reduction, image.height // reduction))
        pixels = np.asarray(reduced, np.float64)
        top, left, height, width = (x // reduction for x in (top, left, height, width))
    result = area_average(pixels[top : top + height, left : left + width], *SHAPE[:2])
    return result[:, ::-1] if crop[4] else result


CROP = np.float32([0.61, 0.72, 0.33, 0.81, 1])


class TestCrops:
    def upright(self, path) -> Image.Image:
        image = Image.open(path)
        image = image.transpose(Image.Transpose.ROTATE_270) if image.getexif() else image
        if image.mode != "RGBA":
            return image
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)

    @pytest.mark.parametrize("memory_limit", [0, 10**9])
    def test_of_every_kind_of_file_are_those_of_the_decoded_image(self, folder, memory_limit):
        split = load(folder, memory_limit=memory_limit).train
        paths = sorted((folder / "train").rglob("*.*g"))
        for index, path in enumerate(paths):
            cropped, label = split.fetch_crop(tf.constant(index), tf.constant(CROP))
            cropped = cropped.numpy().astype(float)
            assert label == int(path.parent.name[-1])
            difference = cropped - by_hand(self.upright(path), CROP)
            # At the edges, colors are interpolated without the pixels that aren't decoded.
            np.testing.assert_allclose(difference[1:-1, 1:-1], 0, atol=0.6)
            np.testing.assert_allclose(difference, 0, atol=4)

    def test_of_a_large_jpeg_are_decoded_at_a_reduced_size(self, tmp_path):
        image = picture(500, 700)
        save(tmp_path / "large.jpg", image, quality=95)
        split = FileSplit(open_tree(tmp_path), [("large.jpg", 0)], SHAPE, encoded=True)
        cropped, _ = split.fetch_crop(tf.constant(0), tf.constant(CROP))
        np.testing.assert_allclose(cropped, by_hand(image, CROP, reduction=8), atol=0.6)

    def test_of_a_small_image_are_bilinear(self):
        pixels = np.asarray(picture(16, 20))
        cropped = photo.cut(tf.constant(pixels), tf.constant([9.0, 9, 0, 0, 0]), SHAPE)
        expected = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(cropped.numpy().astype(int), expected, atol=1)

    def test_cover_a_third_to_all_of_the_image_in_the_shape_of_the_result(self):
        draws = tf.random.stateless_uniform((photo.NUM_DRAWS, 1000), (0, 0), alg="philox")
        height, width, top, left, flipped = photo.random_crops(draws, (10, 20, 3), True).numpy().T
        area, ratio = height * width, width / height / 2
        assert area.min() == pytest.approx(0.35, abs=0.01)
        assert area.max() == pytest.approx(1, abs=0.01)
        assert (ratio.min(), ratio.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.01)
        assert np.median(ratio) == pytest.approx(1, abs=0.03)
        for values in (top, left, flipped):
            assert values.mean() == pytest.approx(0.5, abs=0.05)
        assert not photo.random_crops(draws, SHAPE, False)[:, 4].numpy().any()


class TestPipeline:
    AUGMENT = "photo,trivialaugment,erasing"

    def batches(self, dataset, split, count=5, **options):
        pipeline = data.pipeline(dataset, split, 9, 3, self.AUGMENT, with_index=True, **options)
        assert pipeline.element_spec[0].shape[1:] == SHAPE
        return list(pipeline.take(count).as_numpy_iterator())

    def assert_same(self, first, second):
        tf.nest.map_structure(np.testing.assert_array_equal, first, second)

    @pytest.fixture
    def mixed(self, folder):
        """Encoded training images, a part of them, joined with images in memory."""
        dataset = load(folder)
        train, _ = data.split_train(dataset, 0.2)
        images = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), np.uint8)
        return dataset, Joined(train, data.Split(images, np.full(10, -1)))

    def test_resumes_at_any_step_and_shards_are_pieces(self, mixed):
        whole = self.batches(*mixed)
        self.assert_same(self.batches(*mixed, count=2, start_step=3), whole[3:])
        shards = [self.batches(*mixed, shard_index=n, num_shards=2) for n in (0, 1)]
        pieces = [
            tf.nest.map_structure(lambda *parts: np.concatenate(parts), *parts)
            for parts in zip(*shards, strict=True)
        ]
        self.assert_same(pieces, whole)
        labels = np.concatenate([each[1]["labels"] for each in whole])
        index = np.concatenate([each[1]["index"] for each in whole])
        np.testing.assert_array_equal(labels, mixed[1].labels[index])

    def test_the_files_decide_the_hash(self, folder):
        def settings(**options):
            dataset = load(folder, **options)
            train, _ = data.split_train(dataset, 0.2)
            return data.pipeline(dataset, train, 9, 3, "photo").source.settings()

        before = settings()
        assert settings(memory_limit=0) == before
        assert settings(resize="pad") != before
        path = sorted((folder / "train").rglob("*.jpg"))[0]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert settings() != before


class TestBadFiles:
    def test_one_without_a_header_is_named_at_once(self, folder):
        (folder / "train/class0/notes.txt").write_text("not an image")
        with pytest.raises(InputError, match=r"1 of 31 train images .*notes.txt"):
            load(folder)
        assert len(load(folder, skip_bad_images=True).train) == 30

    @pytest.mark.parametrize("damage", ["truncated", "tables"])
    def test_one_that_breaks_later_is_named(self, folder, damage):
        dataset = load(folder, memory_limit=0)
        path = folder / "train/class0/00.jpg"
        content = bytearray(path.read_bytes())
        if damage == "truncated":
            content = content[:-100]
        else:
            start = content.index(b"\xff\xc4") + 4
            content[start : start + 20] = b"\xff" * 20
        path.write_bytes(content)
        batches = data.pipeline(dataset, "train", 30, 0, "photo").take(1)
        with pytest.raises(InputError, match=r"00.jpg: a broken") as error, name_broken_files():
            list(batches)
        assert "skip_bad_images" in str(error.value)


def test_resize_crops_pads_or_stretches(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("red", (0, 0, 10, 20))
    file = io.BytesIO()
    image.save(file, "PNG")
    for split in ("train", "test"):
        for name in ("a", "b"):
            save(tmp_path / split / name / "x.png", image)

    def loaded(resize, **options):
        images = [
            data.load(
                "folder", tmp_path, image_size=(20, 20), resize=resize, encoded=encoded, **options
            ).test.fetch(tf.constant([0]))[0][0]
            for encoded in (False, True)
        ]
        np.testing.assert_array_equal(*images)
        return images[0].numpy()

    assert (loaded("crop") == 255).all()
    padded = loaded("pad")
    assert not padded[[*range(5), *range(15, 20)]].any()
    assert (padded[5:15, :4] == [255, 0, 0]).all()
    assert (padded[5:15, 6:] == 255).all()
    stretched = loaded("stretch")
    assert (stretched[:, :4] == [255, 0, 0]).all()
    assert (stretched[:, 6:] == 255).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": (8, 8, 3)}, "a height and a width"),
        ({"image_size": [0, 8]}, "8192"),
        ({"image_size": ["8", "8"]}, "8192"),
        ({"image_size": 8, "resize": "squash"}, "'squash'"),
        ({"resize": "pad"}, "image_size"),
    ],
)
def test_bad_sizes_are_refused(tmp_path, options, named):
    with pytest.raises(InputError, match=named):
        data.load("folder", tmp_path, **options)
