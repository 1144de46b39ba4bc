"""Prompt templates: sentences in which `{}` is the name of a class, ours or from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cn_clip.errors import ConfigError
from cn_clip.eval.zeroshot import chinese_prompts

PLACE = "{}"
"""Stands for the name of the class."""
DEFAULT = "default"
"""Entry of a template file for the sets it does not name."""
_SHAPE = 'give a list such as ["一张{}的照片。"], or lists by data set with one named default'


def choose_templates(dataset: str, template_file: str | Path | None = None) -> tuple[str, ...]:
    """Templates for a data set: those under its name, else the general ones."""
    if template_file is None:
        return chinese_prompts.BY_DATASET.get(dataset, chinese_prompts.GENERAL)
    sets = read_templates(template_file)
    if dataset in sets:
        return sets[dataset]
    if DEFAULT in sets:
        return sets[DEFAULT]
    raise ConfigError(
        f"{template_file} has templates for {', '.join(sets)}, but neither for {dataset} nor under {DEFAULT}"
    )


def read_templates(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Templates by data set of a JSON or YAML file; a bare list is the default of all sets."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))  # JSON is YAML too
    except OSError as error:
        raise ConfigError(f"cannot read the template file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the template file {path} is neither JSON nor YAML in UTF-8: {reason}") from error
    if isinstance(content, list):
        content = {DEFAULT: content}
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"the template file {path} holds no templates: {_SHAPE}")
    return {str(name): _checked(templates, f"{path}, {name}") for name, templates in content.items()}


def _checked(templates: object, where: str) -> tuple[str, ...]:
    if not isinstance(templates, list) or not templates:
        raise ConfigError(f"{where}: not a list of templates: {_SHAPE}")
    for template in templates:
        if not isinstance(template, str) or PLACE not in template:
            raise ConfigError(f"{where}: the template {template!r} has no {PLACE} for the name of the class")
    return tuple(templates)


def fill(templates: Sequence[str], name: str) -> list[str]:
    """Each template with the name of a class in place of `{}`."""
    return [template.replace(PLACE, name) for template in templates]
