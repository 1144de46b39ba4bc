"""The checks of `tests/gpu.sh`: each file is a few, whose functions take a `Workplace` and return outcomes."""
