"""Score image-to-text predictions: recall at 1, 5 and 10, and their mean."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from collections.abc import Mapping, Sequence

from cn_clip.errors import CnClipError, run_door
from cn_clip.eval.retrieval import scoring
from cn_clip.eval.retrieval.files import IMAGE_TO_TEXT, read_answers, read_predictions
from cn_clip.eval.retrieval.flags import score_parser


def main(words: Sequence[str] | None = None) -> None:
    """Score a prediction file into a JSON; a failure is written there too and ends with an exit code not 0."""
    flags = score_parser(str(__doc__), IMAGE_TO_TEXT).parse_args(words)
    print(f"Read standard from {flags.annotations}")
    print(f"Read user submit file from {flags.predictions}")
    try:
        recalls = scoring.score_to_file(
            flags.annotations, flags.predictions, flags.output, IMAGE_TO_TEXT, flags.top_k
        )
    except CnClipError as error:
        print(f"The evaluation failed: {error}")
        raise
    mean, r1, r5, r10 = scoring.score_list(recalls)
    print(f"R@1 {r1:.2f}  R@5 {r5:.2f}  R@10 {r10:.2f}  mean {mean:.2f}  (written to {flags.output})")
    print("The evaluation finished successfully.")


def compute_score(golden_file: str, predict_file: str) -> list[float]:
    """[mean recall, R@1, R@5, R@10] in percent."""
    return scoring.score_list(scoring.score_files(golden_file, predict_file, IMAGE_TO_TEXT))


def read_submission(submit_path: str, reference: Mapping[int, object], k: int = 5) -> dict[int, list[int]]:
    """Found text ids by image id; exactly k different ones for each image of `reference`."""
    return read_predictions(submit_path, IMAGE_TO_TEXT, reference, k)


def read_reference(path: str) -> dict[int, list[int]]:
    """Right text ids by image id."""
    return read_answers(path, IMAGE_TO_TEXT)


def report_score(r1: float, r5: float, r10: float, out_p: str) -> None:
    """Write the score JSON of three recalls, each 0 to 1."""
    scoring.write_score(out_p, (r1, r5, r10))


if __name__ == "__main__":
    run_door(main)
