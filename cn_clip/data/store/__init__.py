"""A split on disk: pairs, pictures, their index and their captions' tokens in LMDB folders under `{split}/`.

`layout` says what stands in them (format 2 is ours, format 1 the reference's), `readers` opens both formats, `writer`
writes either one whole or not at all, from nothing or after what is there.
"""

from cn_clip.data.store.image_store import ImageStore
from cn_clip.data.store.layout import PictureFacts
from cn_clip.data.store.pair_store import PairColumns, PairRecord, PairStore
from cn_clip.data.store.picture_tables import TakenIdError
from cn_clip.data.store.readers import Split, open_split
from cn_clip.data.store.token_store import TokenStore
from cn_clip.data.store.writer import SplitWriter

__all__ = [
    "ImageStore",
    "PairColumns",
    "PairRecord",
    "PairStore",
    "PictureFacts",
    "Split",
    "SplitWriter",
    "TakenIdError",
    "TokenStore",
    "open_split",
]
