"""Checkpoints of a run: `state` gathers what one holds, `content` knows the file's layout, `files` its names, `background`
writes it while training goes on, `position` tells where a run stands; `reading` gives back a `saved` one. `saved_folder` and
`folders` do the same for sharded ones, of which each rank writes its part.

A file is the reference's dict: `epoch` (1-based), `step` (optimizer steps done), `name`, `state_dict` (keys begin with
`module.`), `optimizer` (parameters in the reference's order). Beside it `scaler`, and `cn_clip`, which the reference
does not read. One rule for `state_dict`, whatever trains: the weights to use, in the reference's layout. So it holds the
average where there is one and adapters merged; what the run needs to go on and cannot tell from it stands in `cn_clip`.
"""

from __future__ import annotations

from cn_clip.training.checkpoints.position import Position, steps_done
from cn_clip.training.checkpoints.reading import read_saved
from cn_clip.training.checkpoints.saved import SavedRun
from cn_clip.training.checkpoints.state import RunState

__all__ = ["Position", "RunState", "SavedRun", "read_saved", "steps_done"]
