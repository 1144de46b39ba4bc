"""Take the zero-shot prompts out of your own copy of cn-clip, for `zeroshot_evaluation.py --template-file`.

python data_tools/reference_templates.py --reference path/to/site-packages --output cn_clip_templates.json

Its published numbers were made with them. The copy is read as text, nothing in it is run.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first, not an older installed package
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))

import argparse
import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cn_clip.errors import DataError, run_door
from cn_clip.eval.whole_file import open_whole
from cn_clip.eval.zeroshot.templates import DEFAULT, PLACE

FILES = ("cvinw_zeroshot_templates.py", "imagenet_zeroshot_templates.py")
USED = {
    DEFAULT: "openai_templates",
    "country211": "country211_templates",
    "eurosat_clip": "eurosat_templates",
    "fgvc-aircraft-2013b-variants102": "aircraft_templates",
    "food-101": "food_templates",
    "oxford-flower-102": "flower_templates",
    "resisc45_clip": "eurosat_templates",
}
"""Data set -> its list, as cn-clip's own command chooses."""
UNUSED = {
    "caltech-101": "caltech101_templates",
    "cifar-100": "cifar100_templates",
    "dtd": "dtd_templates",
    "fer-2013": "fer_templates",
    "hateful-memes": "hatefulmemes_templates",
    "imagenet": "openai_imagenet_template",
    "kitti-distance": "kitti_templates",
    "oxford-iiit-pets": "pet_templates",
    "patch-camelyon": "patch_templates",
    "stanfordcar": "cars_templates",
}
"""Likewise, of lists that lie there but are never chosen."""


def main(words: Sequence[str] | None = None) -> None:
    flags = parse_flags(words)
    lists = {name: list_ for path in find_files(flags.reference) for name, list_ in read_lists(path)}
    wanted = USED | (UNUSED if flags.every_set else {})
    missing = sorted(set(wanted.values()) - set(lists))
    if missing:
        raise DataError(f"{flags.reference} has no list {missing[0]}: is it a copy of cn-clip 1.6.0?")
    with open_whole(flags.output) as stream:
        json.dump(
            {dataset: lists[name] for dataset, name in wanted.items()}, stream, ensure_ascii=False, indent=1
        )
    print(f"Templates of {len(wanted)} sets are saved in {flags.output}")


def parse_flags(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--reference", type=Path, required=True, help="folder that holds cn_clip/ (or cn_clip/eval/ itself)"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--every-set", action="store_true", help="take the lists that cn-clip's command never chooses too"
    )
    return parser.parse_args(words)


def find_files(reference: Path) -> list[Path]:
    """The files with prompts below a folder of a user's choice."""
    for folder in (reference / "cn_clip" / "eval", reference / "eval", reference):
        found = [folder / name for name in FILES if (folder / name).is_file()]
        if found:
            return found
    raise DataError(
        f"{reference} holds no cn_clip/eval/{FILES[0]}: give the folder that cn-clip is installed in"
    )


def read_lists(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, templates) of each assignment of a list of one-argument lambdas in a Python file."""
    try:
        module = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for statement in module.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.List(elts=[ast.Lambda(), *_] as lambdas)):
                yield name, [to_template(node, path) for node in lambdas]


def to_template(node: ast.expr, path: Path) -> str:
    """`lambda c: f"…{c}…"` -> `…{}…`."""
    match node:
        case ast.Lambda(args=ast.arguments(args=[ast.arg(arg=argument)]), body=ast.JoinedStr(values=parts)):
            return "".join(_part(part, argument, path) for part in parts)
    raise DataError(f"{path} line {node.lineno}: not a prompt of the form lambda c: f'...'")


def _part(part: ast.expr, argument: str, path: Path) -> str:
    match part:
        case ast.Constant(value=str(text)) if PLACE not in text:
            return text
        case ast.FormattedValue(value=ast.Name(id=name), conversion=-1, format_spec=None) if name == argument:
            return PLACE
    raise DataError(f"{path} line {part.lineno}: a prompt with more than the name of the class in it")


if __name__ == "__main__":
    run_door(main)
