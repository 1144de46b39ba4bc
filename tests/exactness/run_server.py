"""Starts training runs as processes of their own in no time: everything is imported once, each run is a fork of that.

A line of JSON in, a line out. `{"words": [...], "environment": {...}, "log": path}` starts a run: its process id.
`{"wait": id}`: its exit code, negative for the signal that ended it. Whoever asked may kill it meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

import torch

# before any arithmetic: no thread may be lost in a fork
torch.set_num_threads(1)

from cn_clip.clip.model import build_model  # noqa: E402
from cn_clip.errors import run_door  # noqa: E402
from cn_clip.training import run  # noqa: E402
from cn_clip.training.main import main as train  # noqa: E402


def child(request: dict[str, Any]) -> NoReturn:
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    code = 1
    try:
        run_door(lambda: train(request["words"]))
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    assert run  # imported for the forks
    build_model("tiny-vit", "tiny-bert")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            reply = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            reply = os.fork()
            if reply == 0:
                child(request)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
