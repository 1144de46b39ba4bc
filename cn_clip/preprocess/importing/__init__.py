"""From the items of a source to `{split}_imgs.tsv`, `{split}_texts.jsonl` and `{split}_names.jsonl`, or to LMDB.

`run.py` is the way through: pictures are read and checked in threads (`pictures.py`), ids and progress are kept in a file
(`progress.py`), rows go to growing files (`outputs.py`) that take their names when everything is written.
"""
