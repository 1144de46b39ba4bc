"""The trainer: a task, a loop, checkpoints and logs. The door is `main.py`."""
