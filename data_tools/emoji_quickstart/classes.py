"""Chinese class names for zero-shot classification, by Unicode subgroup.

Subgroups left out (buttons, punctuation, geometric shapes and the like) have no class a person would name on sight.
"""

CLASSES: dict[str, tuple[str, ...]] = {
    "表情": (
        "face-affection",
        "face-concerned",
        "face-costume",
        "face-glasses",
        "face-hand",
        "face-hat",
        "face-negative",
        "face-neutral-skeptical",
        "face-sleepy",
        "face-smiling",
        "face-tongue",
        "face-unwell",
    ),
    "爱心": ("heart",),
    "手势": (
        "hand-fingers-closed",
        "hand-fingers-open",
        "hand-fingers-partial",
        "hand-prop",
        "hand-single-finger",
        "hands",
    ),
    "人物": (
        "family",
        "person",
        "person-activity",
        "person-fantasy",
        "person-gesture",
        "person-resting",
        "person-role",
        "person-sport",
    ),
    "动物": (
        "animal-amphibian",
        "animal-bird",
        "animal-bug",
        "animal-mammal",
        "animal-marine",
        "animal-reptile",
        "cat-face",
        "monkey-face",
    ),
    "植物": ("plant-flower", "plant-other"),
    "水果和蔬菜": ("food-fruit", "food-vegetable"),
    "食物": ("food-asian", "food-marine", "food-prepared", "food-sweet"),
    "饮料": ("drink",),
    "建筑": ("place-building", "place-religious"),
    "交通工具": ("transport-air", "transport-ground", "transport-water"),
    "天气和天空": ("sky & weather",),
    "时间": ("time",),
    "衣物": ("clothing",),
    "乐器": ("musical-instrument",),
    "工具": ("tool",),
    "书和纸": ("book-paper",),
    "箭头": ("arrow",),
    "星座": ("zodiac",),
    "旗帜": ("country-flag", "flag", "subdivision-flag"),
}
"""Class name → subgroups, in the order of the class numbers."""


def find_class(group: str) -> str | None:
    """The class name of a Unicode subgroup."""
    return next((name for name, groups in CLASSES.items() if group in groups), None)
