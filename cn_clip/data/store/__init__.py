"""A split on disk: pairs and pictures in two LMDB folders, `{split}/pairs` and `{split}/imgs`.

`layout` says what stands in them (format 2 is ours, format 1 the reference's), `readers` reads both formats, `writer`
writes either one whole or not at all.
"""

from cn_clip.data.store.readers import ImageStore, PairRecord, PairStore, Split, open_split
from cn_clip.data.store.writer import SplitWriter

__all__ = ["ImageStore", "PairRecord", "PairStore", "Split", "SplitWriter", "open_split"]
