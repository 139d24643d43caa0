import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, features

from stkd_keras.data.sources.decoding import decode_image
from stkd_keras.errors import InputError

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def noise(*shape, dtype=np.uint8) -> np.ndarray:
    generator = np.random.default_rng(shape)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encode(image: Image.Image | np.ndarray, file_format: str, **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decode(content: bytes, size=None, channels=3) -> np.ndarray:
    pixels = decode_image(content, "photo", size, channels)
    assert pixels.dtype == np.uint8
    return pixels


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as error:
        decode_image(content, "cat/photo.jpg", (8, 8))
    message = str(error.value)
    assert message.startswith("cat/photo.jpg: ")
    assert "\n" not in message
    return message


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1) -> None:
    np.testing.assert_allclose(actual.astype(float), expected, rtol=0, atol=tolerance)


def over_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return colors * weight + 255 * (1 - weight)


def gray_as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


class TestFormats:
    @pytest.mark.parametrize("size", [None, (20, 30)])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95}])
    def test_a_jpeg_of_the_right_size_is_as_pillow_decodes_it(self, size, options):
        content = encode(noise(20, 30, 3), "JPEG", **options)
        expected = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(decode(content, size), expected)

    @pytest.mark.parametrize(
        ("file_format", "options"),
        [
            ("PNG", {}),
            ("BMP", {}),
            ("PPM", {}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("TIFF", {"compression": "tiff_deflate"}),
            ("TIFF", {"big_tiff": True}),
        ],
    )
    def test_lossless_ones_are_exact(self, file_format, options):
        image = noise(20, 30, 3)
        np.testing.assert_array_equal(decode(encode(image, file_format, **options)), image)

    @pytest.mark.parametrize("file_format", ["WEBP", pytest.param("AVIF", marks=needs_avif)])
    def test_lossy_ones_are_near(self, file_format):
        image = gray_as_rgb(np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8))
        assert_near(decode(encode(image, file_format, quality=95)), image, tolerance=8)

    @pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_the_first_of_several_frames_is_decoded(self, file_format):
        frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue", "lime")]
        options = {"lossless": True} if file_format == "WEBP" else {}
        content = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(content)).n_frames == 3
        np.testing.assert_array_equal(decode(content), np.full((6, 8, 3), [255, 0, 0]))


class TestModes:
    @pytest.mark.parametrize("file_format", ["PNG", "GIF", "PPM"])
    def test_gray(self, file_format):
        gray = noise(20, 30)
        content = encode(gray, file_format)
        np.testing.assert_array_equal(decode(content), gray_as_rgb(gray))
        np.testing.assert_array_equal(decode(content, channels=1), gray[..., None])

    @pytest.mark.parametrize("file_format", ["PNG", "GIF", "PPM"])
    def test_black_and_white(self, file_format):
        bits = noise(20, 30) > 127
        content = encode(bits, file_format)
        np.testing.assert_array_equal(decode(content), gray_as_rgb(bits * np.uint8(255)))

    @pytest.mark.parametrize("file_format", ["PNG", "GIF"])
    def test_palette(self, file_format):
        indices, palette = noise(20, 30) % 200, noise(200, 3)
        content = encode(with_palette(indices, palette), file_format)
        np.testing.assert_array_equal(decode(content), palette[indices])

    @pytest.mark.parametrize("file_format", ["PNG", "GIF"])
    def test_palette_with_a_transparent_color(self, file_format):
        indices, palette = noise(20, 30) % 200, noise(200, 3)
        content = encode(with_palette(indices, palette), file_format, transparency=7)
        expected = palette[indices]
        expected[indices == 7] = 255
        np.testing.assert_array_equal(decode(content), expected)

    def test_palette_with_alpha(self):
        indices, palette, alpha = noise(20, 30) % 200, noise(200, 3), noise(200)
        content = encode(with_palette(indices, palette), "PNG", transparency=alpha.tobytes())
        assert_near(decode(content), over_white(palette[indices], alpha[indices]))

    @pytest.mark.parametrize(
        ("file_format", "options"),
        [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})],
    )
    def test_transparent_pixels_are_blended_with_white(self, file_format, options):
        image = noise(20, 30, 4)
        image[:5, :, 3], image[5:10, :, 3] = 0, 255
        ours = decode(encode(image, file_format, **options))
        assert_near(ours, over_white(image[..., :3], image[..., 3]))
        np.testing.assert_array_equal(ours[:5], np.full((5, 30, 3), 255))
        np.testing.assert_array_equal(ours[5:10], image[5:10, :, :3])

    @pytest.mark.parametrize("channels", [1, 3])
    def test_gray_with_alpha(self, channels):
        image = noise(20, 30, 2)
        ours = decode(encode(Image.fromarray(image, "LA"), "PNG"), channels=channels)
        gray = over_white(image[..., :1], image[..., 1])
        assert_near(ours, np.repeat(gray, channels, axis=2))

    @pytest.mark.parametrize(("mode", "color"), [("RGB", (1, 2, 3)), ("L", 1), ("1", 0)])
    def test_a_transparent_color(self, mode, color):
        content = encode(Image.new(mode, (3, 2), color), "PNG", transparency=color)
        np.testing.assert_array_equal(decode(content), np.full((2, 3, 3), 255))

    def test_cmyk(self):
        inks = noise(20, 30, 4)
        expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
        assert_near(decode(encode(Image.fromarray(inks, "CMYK"), "TIFF")), expected)
        flat = Image.new("CMYK", (16, 16), (200, 100, 0, 50))
        expected = np.full((16, 16, 3), [44, 125, 205])
        assert_near(decode(encode(flat, "JPEG", quality=100)), expected, tolerance=3)

    def test_color_as_gray(self):
        image = noise(20, 30, 3)
        luma = image @ [0.299, 0.587, 0.114]
        assert_near(decode(encode(image, "PNG"), channels=1), luma[..., None])


def with_palette(indices: np.ndarray, palette: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices).convert("L")
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    return image


class TestMoreThanEightBits:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
    def test_16_bit_gray_is_scaled_and_rounded(self, file_format, channels):
        gray = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
        ours = decode(encode(gray, file_format), channels=channels)
        rounded = (gray.astype(int) + 128) // 257
        np.testing.assert_array_equal(ours, np.repeat(rounded[..., None], channels, axis=2))

    def test_big_endian(self):
        gray = noise(20, 30, dtype=np.uint16)
        content = encode(Image.frombytes("I;16B", (30, 20), gray.astype(">u2").tobytes()), "TIFF")
        assert Image.open(io.BytesIO(content)).mode == "I;16B"
        np.testing.assert_array_equal(decode(content)[..., 0], (gray.astype(int) + 128) // 257)

    def test_16_bit_color(self):
        image = noise(20, 30, 3, dtype=np.uint16)
        assert_near(decode(png_of_16_bits(image)), image / 257)

    @pytest.mark.parametrize("brightest", [255, 65535, 2**31 - 1])
    def test_32_bit_gray_isnt_clipped(self, brightest):
        gray = np.linspace(0, brightest, 600).astype(np.int32).reshape(20, 30)
        expected = gray / max(brightest, 65535) * 255
        assert_near(decode(encode(gray, "TIFF"))[..., 0], expected)

    @pytest.mark.parametrize("darkest", [0.0, -3.0])
    @pytest.mark.parametrize("brightest", [0.5, 1.0, 255.0])
    def test_floats_arent_clipped(self, darkest, brightest):
        gray = np.linspace(darkest, brightest, 600, dtype=np.float32).reshape(20, 30)
        expected = (gray - darkest) / (max(brightest, 1) - darkest) * 255
        assert_near(decode(encode(gray, "TIFF"))[..., 0], expected)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_pixels_that_are_not_finite(self, value):
        gray = np.zeros((8, 8), np.float32)
        gray[3, 4] = value
        assert "finite" in refusal(encode(gray, "TIFF"))


def png_of_16_bits(image: np.ndarray) -> bytes:
    """A 16-bit color PNG, which Pillow can't write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


class TestSize:
    @settings(max_examples=20, deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
        size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
        channels=st.sampled_from([1, 3]),
    )
    @example(shape=(1, 60), size=(24, 24), channels=3)
    @example(shape=(60, 1), size=(1, 24), channels=1)
    def test_scaled_to_cover_it_and_cropped_about_the_center(self, shape, size, channels):
        image = noise(*shape, 3) if channels == 3 else noise(*shape)
        expected = resample(image.reshape(*shape, channels), size)
        ours = decode(encode(image, "PNG"), size, channels)
        assert ours.shape == (*size, channels)
        # Pillow rounds after each direction, and after finding the crop.
        assert_near(ours, expected, tolerance=2)

    def test_no_size_keeps_the_original(self):
        assert decode(encode(noise(7, 5, 3), "JPEG")).shape == (7, 5, 3)

    def test_transparent_pixels_do_not_bleed_when_scaled(self):
        image = np.zeros((64, 64, 4), np.uint8)
        image[:, 32:] = [255, 0, 0, 255]
        ours = decode(encode(image, "PNG"), (8, 8))
        np.testing.assert_array_equal(ours[:, :3], np.full((8, 3, 3), 255))
        np.testing.assert_array_equal(ours[..., 0], np.full((8, 8), 255))


def resample(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales with a triangle as wide as two pixels of the result, about the image's center."""
    scale = min(length / new for length, new in zip(image.shape, size, strict=False))
    rows, columns = (triangle(image.shape[axis], size[axis], scale) for axis in (0, 1))
    return np.einsum("ai,bj,ijc->abc", rows, columns, image.astype(float))


def triangle(length: int, new_length: int, scale: float) -> np.ndarray:
    first = (length - new_length * scale) / 2
    centers = first + (np.arange(new_length) + 0.5) * scale
    distances = np.abs(np.arange(length) + 0.5 - centers[:, None])
    weights = np.maximum(0, 1 - distances / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


class TestOrientation:
    @pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
    @pytest.mark.parametrize(
        ("orientation", "upright"),
        [
            (1, lambda stored: stored),
            (2, np.fliplr),
            (3, lambda stored: np.rot90(stored, 2)),
            (4, np.flipud),
            (5, lambda stored: stored.swapaxes(0, 1)),
            (6, lambda stored: np.rot90(stored, -1)),
            (7, lambda stored: np.rot90(stored, 2).swapaxes(0, 1)),
            (8, np.rot90),
        ],
    )
    def test_exif_orientation_is_applied(self, file_format, orientation, upright):
        stored = np.repeat(np.repeat(noise(3, 4, 3), 8, axis=0), 8, axis=1)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        best = {"quality": 100, "subsampling": 0}
        options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": best}
        content = encode(stored, file_format, exif=exif, **options[file_format])
        # Its blocks of one color match those of JPEG, so little is lost.
        tolerance = 3 if file_format == "JPEG" else 0
        assert_near(decode(content), upright(stored), tolerance)

    @pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff"])
    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_broken_exif_is_ignored(self, file_format, exif):
        options = {"lossless": True} if file_format == "WEBP" else {}
        image = noise(8, 6, 3)
        np.testing.assert_array_equal(
            decode(encode(image, file_format, exif=exif, **options)),
            decode(encode(image, file_format, **options)),
        )


class TestBadFiles:
    @pytest.mark.parametrize(
        "content",
        [
            b"No image, but the story of one.\n",
            b"%PDF-1.7\n",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            bytes(1000),
            encode(noise(8, 8, 3), "PNG")[1:],
        ],
    )
    def test_no_image(self, content):
        assert "not an image" in refusal(content)

    def test_empty(self):
        assert "empty" in refusal(b"")

    def test_implausibly_large(self):
        # An image of one color takes only 50 kB.
        assert "implausibly large" in refusal(encode(Image.new("1", (20_000, 20_000)), "PNG"))

    @pytest.mark.parametrize("options", [{}, {"progressive": True}])
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_a_jpeg_that_is_cut_off_anywhere(self, mode, options):
        content = encode(Image.fromarray(noise(40, 50, 3)).convert(mode), "JPEG", **options)
        for length in (30, 700, len(content) // 2, len(content) - 100):
            refusal(content[:length])
        assert "truncated" in refusal(content[: len(content) // 2])

    @settings(max_examples=100, deadline=None)
    @given(
        encoded=st.sampled_from(
            [
                encode(Image.fromarray(noise(24, 32, 3)).convert(mode), file_format, **options)
                for file_format, mode, options in [
                    ("JPEG", "RGB", {}),
                    ("PNG", "RGBA", {}),
                    ("PNG", "P", {}),
                    ("GIF", "P", {}),
                    ("BMP", "RGB", {}),
                    ("PPM", "RGB", {}),
                    ("WEBP", "RGB", {}),
                    ("WEBP", "RGB", {"lossless": True}),
                    ("TIFF", "RGB", {}),
                    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
                ]
            ]
        ),
        share=st.floats(0, 1, exclude_max=True),
    )
    def test_a_truncated_image_is_refused_or_complete(self, encoded, share):
        # The last bytes of a PNG, for example, hold no pixels.
        with contextlib.suppress(InputError):
            ours = decode(encoded[: int(share * len(encoded))])
            np.testing.assert_array_equal(ours, decode(encoded))

    @settings(max_examples=100, deadline=None)
    @given(
        encoded=st.sampled_from(
            [
                encode(noise(8, 8, 3), file_format)
                for file_format in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
            ]
        ),
        changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=5),
    )
    @pytest.mark.filterwarnings("ignore")
    def test_a_damaged_image_is_decoded_or_refused(self, encoded, changes):
        content = bytearray(encoded)
        for position, value in changes:
            content[position % len(content)] = value
        # No other exception may be raised.
        with contextlib.suppress(InputError):
            assert decode(bytes(content), (8, 8)).shape == (8, 8, 3)
