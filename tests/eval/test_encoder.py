from pathlib import Path

import torch

from cn_clip.clip.model import build_model
from cn_clip.eval.features.encoder import Choice, open_encoder


def test_pictures_are_taken_at_the_size_the_weights_were_trained_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("tiny-vit", "tiny-bert", image_px=48).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.pt")
    encoder = open_encoder(
        Choice(image="tiny-vit", text="tiny-bert", weights=tmp_path / "a.pt", device=torch.device("cpu"))
    )
    assert encoder.image_px == encoder.model.visual.image_px == 48
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_images(images), model.encode_image(images))
