import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import cn_clip.clip
from cn_clip.clip import utils
from cn_clip.clip.model import CLIP, build_model
from cn_clip.errors import CnClipError, ConfigError, DeviceError, WeightsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weights = build_model("tiny-vit", "tiny-bert").state_dict()
    state_dict = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"epoch": 1, "step": 2, "name": "x", "state_dict": state_dict}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def similarity(model: CLIP) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        tokens = cn_clip.clip.tokenize(["一只猫", "两只狗"])
        return model.get_similarity(torch.randn(2, 3, 32, 32), tokens)[0]


def test_available_models() -> None:
    assert utils.available_models() == ["ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50"]


def test_a_local_file_tells_its_towers(checkpoint: Path) -> None:
    model, preprocess = utils.load_from_name(str(checkpoint), "cpu")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert preprocess.transforms[0].size == (32, 32)
    named, _ = utils.load_from_name(str(checkpoint), torch.device("cpu"), None, "tiny-vit", "tiny-bert", 32)
    assert torch.equal(similarity(model), similarity(named))
    assert torch.equal(similarity(model), similarity(model)), "no dropout: the same each time"


def test_another_resolution_stretches_the_position_embedding(checkpoint: Path) -> None:
    model, preprocess = utils.load_from_name(str(checkpoint), "cpu", input_resolution=64)
    assert preprocess.transforms[0].size == (64, 64)
    assert model.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 16)


def test_the_wrong_towers_named(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match="seems to have image tower tiny-vit and text tower tiny-bert"):
        utils.load_from_name(str(checkpoint), "cpu", None, "tiny-resnet", "tiny-bert", 32)
    with pytest.raises(ConfigError, match="did you mean tiny-vit"):
        utils.load_from_name(str(checkpoint), "cpu", vision_model_name="tiny-vitt")


def test_neither_a_name_nor_a_file() -> None:
    with pytest.raises(RuntimeError, match="ViT-B-61 not found") as caught:
        utils.load_from_name("ViT-B-61", "cpu")
    assert isinstance(caught.value, CnClipError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there(checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match="cuda:0"):
        utils.load_from_name(str(checkpoint), "cuda:0")


def test_create_model(checkpoint: Path) -> None:
    model = utils.create_model("tiny-vit@tiny-bert", torch.load(checkpoint))
    assert model.dtype == torch.float16
    loaded, _ = utils.load_from_name(str(checkpoint), "cpu")
    assert torch.equal(similarity(model.float().eval()), similarity(loaded))
    assert utils.create_model("tiny-vit@tiny-bert").dtype == torch.float16
    with pytest.raises(ConfigError, match="VISION@TEXT"):
        utils.create_model("tiny-vit")


def test_load_gives_both_towers(checkpoint: Path) -> None:
    source = build_model("tiny-vit", "tiny-bert")
    source.load_state_dict(
        {n.removeprefix("module."): t for n, t in torch.load(checkpoint)["state_dict"].items()}
    )
    torch.manual_seed(7)
    model = build_model("tiny-vit", "tiny-bert").train()
    assert utils.load(model, "cpu", clip_path=str(checkpoint), bert_path=str(checkpoint)) is model
    assert not model.training
    for tower in ("visual", "bert"):
        for name, tensor in getattr(source, tower).state_dict().items():
            assert torch.equal(getattr(model, tower).state_dict()[name], tensor), name


def test_tokenize_takes_one_text_or_several() -> None:
    one = utils.tokenize("皮卡丘")
    assert one.shape == (1, 52)
    assert one.dtype == torch.int64
    assert torch.equal(utils.tokenize(["皮卡丘", "杰尼龟"], context_length=8)[0], one[0, :8])


# --- downloads


def test_a_file_in_the_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "clip_cn_rn50.pt").write_bytes(b"x")
    assert utils._download("RN50", str(tmp_path)) == str(tmp_path / "clip_cn_rn50.pt")
    assert utils._download("RN50", str(tmp_path), True) == str(tmp_path / "clip_cn_rn50.pt")


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache/clip").mkdir(parents=True)
    (tmp_path / ".cache/clip/clip_cn_rn50.pt").write_bytes(b"x")
    assert utils._download("RN50") == str(tmp_path / ".cache/clip/clip_cn_rn50.pt")


@pytest.mark.parametrize(
    ("use_modelscope", "page"), [(False, "huggingface.co/OFA-Sys"), (True, "modelscope.cn/")]
)
def test_a_hub_that_cannot_be_reached(tmp_path: Path, use_modelscope: bool, page: str) -> None:
    """conftest.py sets HF_HUB_OFFLINE; modelscope is not installed."""
    with pytest.raises(WeightsError) as caught:
        utils.load_from_name(
            "RN50", "cpu", download_root=str(tmp_path / "weights"), use_modelscope=use_modelscope
        )
    message = str(caught.value)
    assert "get clip_cn_rn50.pt from https://" in message
    assert page in message and "chinese-clip-rn50" in message
    assert message.endswith(f"put it into {tmp_path / 'weights'}")
    assert "\n" not in message


@pytest.mark.parametrize("use_modelscope", [False, True])
def test_what_the_hub_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_modelscope: bool
) -> None:
    asked: list[tuple[str, str, str]] = []

    def fetch(name: str, file: str, folder: str) -> str:
        asked.append((name, file, folder))
        return str(Path(folder) / file)

    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda name, filename, local_dir: fetch(name, filename, local_dir)  # type: ignore[attr-defined]
    scope = types.ModuleType("modelscope.hub.file_download")
    scope.model_file_download = lambda model_id, file_path, local_dir: fetch(model_id, file_path, local_dir)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for name in ("modelscope", "modelscope.hub"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "modelscope.hub.file_download", scope)
    path = utils._download("ViT-B-16", str(tmp_path), use_modelscope)
    owner = "AI-ModelScope" if use_modelscope else "OFA-Sys"
    assert asked == [(f"{owner}/chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt", str(tmp_path))]
    assert path == str(tmp_path / "clip_cn_vit-b-16.pt")


@pytest.mark.parametrize("name", ["nonesuch", ("chinese-clip-rn50", "clip_cn_rn50.pt")])
def test_download_takes_names_only(name: object) -> None:
    with pytest.raises(WeightsError, match="not one of the published models"):
        utils._download(name)  # type: ignore[arg-type]  # the reference's deploy scripts pass a tuple


# --- imports


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": ":".join(map(str, paths or (ROOT,))), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/"
    )


def test_the_import_is_light() -> None:
    done = run("import sys, cn_clip.clip; print([m for m in ('torch', 'numpy') if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr
    done = run(
        "import sys; from cn_clip.clip import load_from_name, available_models, tokenize, load, convert_state_dict\n"
        "heavy = ('torchvision', 'timm', 'transformers', 'open_clip', 'huggingface_hub')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stderr


def test_modules_and_tokenizer_are_attributes_of_the_package() -> None:
    done = run(
        "import cn_clip.clip as clip\n"
        "from cn_clip.clip import _tokenizer, FullTokenizer\n"
        "assert isinstance(_tokenizer, FullTokenizer) and clip._tokenizer is _tokenizer\n"
        "print(clip.model.CLIP.__name__, clip.utils._MODELS['RN50'][1], callable(clip.image_transform))"
    )
    assert done.stdout == "CLIP clip_cn_rn50.pt True\n", done.stderr


def test_flash_attention_of_any_version_does_not_matter(tmp_path: Path) -> None:
    """The reference fails to import beside flash-attn 2."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("__version__ = '2.8.3'")
    (tmp_path / "flash_attn-2.8.3.dist-info").mkdir()
    (tmp_path / "flash_attn-2.8.3.dist-info" / "METADATA").write_text("Name: flash_attn\nVersion: 2.8.3\n")
    done = run(
        "from cn_clip.clip.model import build_model; print(build_model('tiny-vit', 'tiny-bert').dtype)",
        ROOT,
        tmp_path,
    )
    assert done.stdout == "torch.float32\n", done.stderr


def test_a_torch_version_of_a_development_build() -> None:
    done = run("import torch; torch.__version__ = '2.14.0a0+git1'; import cn_clip.clip.utils; print('fine')")
    assert done.stdout == "fine\n", done.stderr


def test_import_clip_with_the_package_s_folder_on_the_path() -> None:
    done = run(
        "import clip; from clip.utils import tokenize; print(tokenize('猫').shape[1])", ROOT / "cn_clip", ROOT
    )
    assert done.stdout == "52\n", done.stderr


def test_nothing_is_printed(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    utils.load_from_name(str(checkpoint), "cpu")
    assert capfd.readouterr().out == ""
