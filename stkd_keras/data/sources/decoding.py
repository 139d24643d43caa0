"""Image files of any size, mode and format into arrays."""

import io

import numpy as np
from PIL import Image, ImageOps

from stkd_keras.data.sources.file_tree import reason
from stkd_keras.errors import InputError

# Not all that Pillow knows: for one of them it runs another program, others have no beginning
# that tells them from any file.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Left to the first image it would be done by several threads at once, and might miss a format.
Image.init()


def decode_image(
    content: bytes, name: str, size: tuple[int, int] | None, channels: int = 3
) -> np.ndarray:
    """Decodes an image file.

    An image is turned as its EXIF says. Of several frames or pages the first counts. Transparent
    pixels are laid over white. Grey of more than 8 bits is scaled to 8: white is 65535, or 1 in
    files of floats, or the brightest pixel where that is beyond. Colour profiles are ignored.

    Args:
        content: the content of an AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file.
        name: what errors call it.
        size: (height, width) that the image is scaled to cover (bilinear, with antialiasing)
            and cropped to about its centre, in pixels; None keeps its own.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 array of shape (height, width, channels), in [0, 255].

    Raises:
        InputError: "NAME: REASON", if the content isn't an image in one of these formats, is
            broken or cut off, or has more pixels than Pillow takes for plausible (180 million).
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            _turn_upright(image)
            converted = _with_channels(image, channels)
        if size is not None:
            converted = ImageOps.fit(converted, size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(converted)
        return pixels.reshape(*pixels.shape[:2], channels)
    # Broken files make Pillow raise almost anything.
    except Exception as error:
        raise InputError(f"{name}: {_what_is_wrong(content, error)}") from error


def _turn_upright(image: Image.Image) -> None:
    # What of EXIF can't be read leaves the pixels as good as they are.
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        return


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert({1: "L", 3: "RGB"}[channels])


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips: all but the darkest pixels of a 16-bit PNG would be white.
    values = np.asarray(image, np.float32)
    darkest = min(values.min(), 0.0)
    brightest = max(values.max(), 1.0 if image.mode == "F" else 65535.0)
    if not np.isfinite(brightest - darkest):
        raise ValueError("pixels that aren't finite numbers")
    scaled = (values - darkest) * (255 / (brightest - darkest))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _what_is_wrong(content: bytes, error: Exception) -> str:
    if not content:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"no image, or only the beginning of one (read are {', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return "implausibly large: more pixels than Pillow takes for safe to decode"
    return f"a broken or truncated image ({reason(error)})"
