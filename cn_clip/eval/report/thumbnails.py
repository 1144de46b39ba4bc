"""Small copies of pictures as data addresses, so that the page needs no other file."""

from __future__ import annotations

import base64
import io

from cn_clip.clip.transform import open_picture

THUMBNAIL_PX = 144  # the page shows at most 96; twice that is no sharper to see than this


def thumbnail(raw: bytes) -> str:
    """`data:` address of the picture, its shape kept, its longer side at most 144 px; DataError for damaged bytes."""
    picture = open_picture(raw)
    if picture.mode not in ("RGB", "RGBA"):
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "LA" else "RGB")
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
