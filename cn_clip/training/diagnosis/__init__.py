"""What `cn-clip doctor` looks at: each file is a check, whose function returns findings, or what checks are made of.

The prediction of memory (`fake_model`, `live_bytes`, `step_cost`, `shares`, `memory`) also serves `--dry-run` and the
tables of docs/scaling.md.
"""
