"""Zero-shot classification: name each picture by the class whose prompts are nearest, and print the accuracy."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from collections.abc import Sequence

from cn_clip.errors import run_door
from cn_clip.eval.params import format_params
from cn_clip.eval.zeroshot.flags import check_sizes, zeroshot_parser


def main(words: Sequence[str] | None = None) -> None:
    """Evaluate, write the predictions and print the result."""
    flags = zeroshot_parser(__doc__).parse_args(words)
    print(format_params(flags))
    check_sizes(flags)

    from cn_clip.clip.presets import image_preset
    from cn_clip.eval.device import pick_device
    from cn_clip.eval.features.encoder import Choice, open_encoder
    from cn_clip.eval.zeroshot.classifier import REFERENCE_SCALE
    from cn_clip.eval.zeroshot.elevater import output_path, write_predictions
    from cn_clip.eval.zeroshot.evaluate import evaluate
    from cn_clip.eval.zeroshot.labels import read_class_names, read_index
    from cn_clip.eval.zeroshot.pictures import LabelledPictures, RgbTransform, open_folder
    from cn_clip.eval.zeroshot.templates import choose_templates

    # everything that can be wrong in the small files is said before the weights are read
    device = pick_device(flags.device)
    output = output_path(flags.save_dir, flags.dataset)
    names = read_class_names(flags.label_file)
    templates = choose_templates(flags.dataset, flags.template_file)
    image_px = image_preset(flags.vision_model).image_px
    folder = open_folder(flags.datapath, image_px, len(names), flags.labels_by)
    index = read_index(flags.index, len(folder)) if flags.index else None

    encoder = open_encoder(
        Choice(
            image=flags.vision_model,
            text=flags.text_model,
            weights=flags.resume,
            device=device,
            precision=flags.precision,
        )
    )
    folder.transform = RgbTransform(
        encoder.image_px
    )  # what it was trained with, which the preset may not know
    print(f"=> loaded checkpoint '{flags.resume}'" + (f" ({encoder.position})" if encoder.position else ""))
    print(f"{len(folder)} pictures, {len(names)} classes, {len(templates)} prompts each")

    scale = REFERENCE_SCALE if flags.scale == "100" else encoder.model.logit_scale.exp().item()
    pictures = LabelledPictures(folder, flags.img_batch_size, flags.num_workers, device)
    scores = evaluate(encoder, names, templates, pictures, flags.context_length, scale)
    saved_NK = scores.probabilities if index is None else scores.probabilities[index]
    write_predictions(output, flags.dataset, flags.vision_model, encoder.model, saved_NK)
    print(f"Predictions are saved in {output}")
    print(f"top5: {scores.top(5)}, mean accuracy of classes: {scores.mean_class}")
    print("Result:")
    print(f"zeroshot-top1: {scores.top(1)}")
    print("Finished.")


if __name__ == "__main__":
    run_door(main)
