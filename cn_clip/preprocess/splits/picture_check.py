"""Whether bytes are a whole picture, found out from their two ends where the format allows it."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, UnidentifiedImageError

# PIL opens these, but not as pixels, or by running another program (EPS calls Ghostscript)
_NO_PIXELS = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "PDF", "WMF"}


def find_fault(picture: bytes) -> str | None:
    """What is wrong with an encoded picture, or None.

    The header is read by PIL. A picture that does not end as its format does is decoded in full, which tells a cut file
    from one that merely has bytes after its end.
    """
    if not picture:
        return "it is empty"
    try:
        with Image.open(BytesIO(picture)) as image:
            if image.format in _NO_PIXELS:
                return f"{image.format} has no pixels; save it as PNG or JPEG"
            if image.format == "PNG" and b"IEND" not in picture:
                return "the picture is cut: it has no end"  # PIL would not mind, if all pixels happen to be there
            if not _ends_whole(picture, image.format):
                image.load()
    except UnidentifiedImageError:
        return "not a picture of a known format"
    except Exception as error:  # PIL's many decoders raise whatever their parsing stumbles over
        return f"the picture cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})"
    return None


def _ends_whole(picture: bytes, format: str | None) -> bool:
    match format:
        case "JPEG" | "MPO":
            return b"\xff\xd9" in picture[-64:]  # end of image; some cameras add a few bytes
        case "PNG":
            return b"IEND" in picture[-16:]
        case "GIF":
            return picture.endswith(b"\x3b")
        case "WEBP":
            after_size = int.from_bytes(picture[4:8], "little")  # RIFF counts what follows its size
            return after_size + 8 <= len(picture)
    return False
