"""Flags of every import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Flags of every import."""

    output_dir: Path
    """folder for the files, made when missing"""
    to: Literal["tsv", "lmdb"] = "tsv"
    """tsv writes {split}_imgs.tsv and {split}_texts.jsonl; lmdb builds OUTPUT_DIR/lmdb/{split} from them and keeps no TSV"""
    max_px: int | None = None
    """pictures whose longer side has more pixels are made that small and become JPEG; others stay byte for byte"""
    bad_rows: Literal["stop", "skip"] = "stop"
    """what a picture or row that cannot be used does: stop the import, or be passed over and listed in bad_rows.jsonl"""
    max_bad_share: float = 0.01
    """with --bad-rows skip: more bad pictures and captions than this share are an error"""
    workers: int | None = None
    """threads that read, check and shrink pictures; one per core when not given"""
    start_anew: bool = False
    """begin at the first row, and give up an unfinished import in the folder"""
