"""From `{split}_imgs.tsv` and `{split}_texts.jsonl` to a split's LMDB: rows read, pictures checked, pairs joined."""
