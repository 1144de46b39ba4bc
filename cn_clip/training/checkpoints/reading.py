"""Reading a checkpoint of a run: a file of ours or of the reference, or a folder of shards."""

from __future__ import annotations

import logging
from pathlib import Path

from cn_clip.clip.weights import read_checkpoint
from cn_clip.parallel.sharded_files import read_facts
from cn_clip.training.checkpoints.content import check_format
from cn_clip.training.checkpoints.saved import SavedRun, position_of
from cn_clip.training.checkpoints.saved_file import SavedFile
from cn_clip.training.checkpoints.saved_folder import SavedFolder

logger = logging.getLogger(__name__)


def read_saved(path: Path) -> SavedRun:
    """A checkpoint to go on from; WeightsError for one of weights only, or of a newer program. Called by every rank."""
    logger.info("=> begin to load checkpoint '%s'", path)
    if path.is_dir():
        # the name may be given to another folder while this one is read
        folder = path.resolve()
        facts = read_facts(folder)
        check_format(facts, str(path))
        return SavedFolder(folder, position_of(facts, path), facts["cn_clip"], facts)
    checkpoint = read_checkpoint(path)
    check_format(checkpoint, str(path))
    return SavedFile(path, position_of(checkpoint, path), checkpoint.get("cn_clip", {}), checkpoint)
