"""Kinds of data that `cn-clip import KIND` reads: `KIND` is the name of a module here, with dashes for its underscores.

Contract of a module: a docstring whose first line says what is read, and which says what of the layout was taken as given;
a frozen dataclass `Options`, whose fields are the flags of the command; and `build(options) -> Source`
(`cn_clip/preprocess/importing/items.py`), which checks that the input is there and reads none of its rows yet. A source gives
pictures and captions in an order that is the same every time, each picture before the captions that name it.
"""
