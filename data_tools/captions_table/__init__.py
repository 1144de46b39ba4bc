"""From a table of picture files and captions, with a folder of pictures, to the TSV and JSONL of splits."""
