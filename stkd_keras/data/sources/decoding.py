"""Decodes image files of any size, mode and format."""

import io
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageOps

from stkd_keras.errors import InputError, one_line

# Pillow has more, but runs an external program for one and doesn't detect others reliably.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # Of JPEG and PNG, by first bytes.
_LONGEST_TRAILER = 1024  # Some cameras write a few bytes after the image.

_BILINEAR = Image.Resampling.BILINEAR
_Resize = Callable[[Image.Image, tuple[int, int]], Image.Image]
RESIZES: dict[str, _Resize] = {
    "crop": lambda image, size: ImageOps.fit(image, size, _BILINEAR),
    "pad": lambda image, size: ImageOps.pad(image, size, _BILINEAR),
    "stretch": lambda image, size: image.resize(size, _BILINEAR),
}
"""How an image gets a size: scaled to cover it and cropped around its center, scaled to fit into it
and padded with black, or scaled without keeping its aspect ratio."""

# Otherwise, threads would initialize Pillow concurrently and might miss a format.
Image.init()


def decode_image(
    content: bytes,
    name: str,
    size: tuple[int, int] | None,
    channels: int = 3,
    *,
    resize: str = "crop",
    reduction: int = 1,
) -> np.ndarray:
    """Decodes an image file; raises an InputError "NAME: REASON" on failure.

    Applies the EXIF orientation, takes the first frame, blends transparent pixels with white, and
    ignores color profiles. Grayscale of more than 8 bits is scaled to 8 bits. Resizes as `resize`
    says if a size is given. JPEGs may be decoded at 1/`reduction` of their size, which is faster.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            image.load()
            _apply_orientation(image)
            converted = _with_channels(image, channels)
        if size is not None:
            converted = RESIZES[resize](converted, size[::-1])
        pixels = np.asarray(converted)
        return pixels.reshape(*pixels.shape[:2], channels)
    except Exception as error:  # Pillow raises almost anything for broken files.
        raise InputError(f"{name}: {_problem(content, error)}") from error


def read_header(content: bytes, name: str) -> tuple[tuple[int, int], bool]:
    """Returns an image's (height, width), and whether TensorFlow decodes it as `decode_image` does.

    TensorFlow ignores the EXIF orientation, and doesn't name a truncated file.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            is_plain = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
            orientation = _orientation(image)
    except Exception as error:
        raise InputError(f"{name}: {_problem(content, error)}") from error
    size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    return size, is_plain and orientation not in range(2, 9) and not lacks_end(content)


def lacks_end(content: bytes) -> bool:
    """Whether a JPEG or PNG file has no end marker, so that it may be truncated."""
    return _ENDS.get(content[:2], b"") not in content[-_LONGEST_TRAILER:]


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # As in `_apply_orientation`.
        return 1


def _apply_orientation(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # Broken EXIF data doesn't affect the pixels.
        return


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert({1: "L", 3: "RGB"}[channels])


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips, which makes 16-bit PNGs almost white.
    values = np.asarray(image, np.float32)
    darkest = min(values.min(), 0.0)
    brightest = max(values.max(), 1.0 if image.mode == "F" else 65535.0)
    if not np.isfinite(brightest - darkest):
        raise ValueError("pixels that aren't finite numbers")
    scaled = (values - darkest) * (255 / (brightest - darkest))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _problem(content: bytes, error: Exception) -> str:
    if not content:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image, or a truncated one (supported: {', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return "implausibly large: more pixels than Pillow considers safe to decode"
    return f"a broken or truncated image ({one_line(error)})"
