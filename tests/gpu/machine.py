"""Device and versions."""

from __future__ import annotations

import subprocess

import torch

from cn_clip.training.diagnosis.machine import check_machine
from gpu.outcome import Outcome, passes
from gpu.workplace import ROOT, Workplace


def check_versions(place: Workplace) -> list[Outcome]:
    """What all other lines were found with."""
    found = check_machine(place.alone)
    rows = [["what", "value"], ["commit", _commit()], ["torch", torch.__version__]]
    if place.is_cuda:
        rows += [[f"GPU {i}", torch.cuda.get_device_name(i)] for i in range(place.num_gpus)]
        rows += [
            ["cuDNN", str(torch.backends.cudnn.version())],
            ["NCCL", ".".join(map(str, torch.cuda.nccl.version()))],
        ]
    rows += [[name, str(value)] for finding in found for name, value in finding.numbers.items()]
    return [passes("machine", True, "; ".join(finding.says for finding in found), rows)]


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return done.stdout.strip() or "not a checkout"
