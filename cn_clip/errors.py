"""What a person can mend, and how a command says it: one sentence, exit code not 0.

CnClipError
├── ConfigError    a setting or flag: wrong name, type, choice or combination
├── DataError      a file or store of pictures, captions, features or predictions
├── WeightsError   a checkpoint or tower file: missing, unreadable, of another architecture
├── DeviceError    a device, kernel or precision this machine does not have
├── LaunchError    ranks that cannot meet: ports, addresses, world sizes
├── TrainingError  a run that cannot sensibly go on: its loss is no number any more
│   └── LostRankError  another rank does not answer: started again, the run may well go on
└── Preempted      a run that was asked to stop, and has saved where it stands
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import socket


class CnClipError(Exception):
    """Base of all errors whose message names what is wrong, where, and the next step."""


class ConfigError(CnClipError):
    """A setting or a flag cannot be used as given."""


class DataError(CnClipError):
    """A data file or store cannot be read or written as asked."""


class WeightsError(CnClipError):
    """A weights file cannot be read or does not fit the model."""


class DeviceError(CnClipError):
    """The device, kernel or precision asked for is not there."""


class LaunchError(CnClipError):
    """The ranks of a run cannot be started or joined."""


class TrainingError(CnClipError):
    """A run cannot sensibly go on."""


class LostRankError(TrainingError):
    """Another rank of the run does not answer any more."""


class Preempted(CnClipError):  # noqa: N818  # nobody made a mistake
    """A signal asked the run to stop; it has saved, and the same command goes on."""


EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXIT_LOST_RANK = 76
"""Not that of a user's error: a launcher may start the run again."""
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

EXIT_MARKER = "CN_CLIP_EXIT_MARKER"
"""Environment variable with a path. A process that ends on purpose writes its exit code there, for the launcher: torchrun
ends with 1 whatever the codes of its workers are."""


def run_door(main: Callable[[], object]) -> NoReturn:
    """Run a command and end the process: 0, or one sentence on stderr and another exit code."""
    try:
        main()
    except Preempted as stopped:
        _end(str(stopped), EXIT_PREEMPTED)
    except LostRankError as error:
        _end(f"error: {error}", EXIT_LOST_RANK)
    except CnClipError as error:
        _end(f"error: {error}", EXIT_USER_ERROR)
    except BrokenPipeError:  # `… | head`: the reader left, which is not our failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _end(f"error: {_about_a_file(error)}", EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _end("interrupted", EXIT_INTERRUPTED)
    _leave(0)


_OF_FILES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EFBIG, errno.EIO}
"""What a person can mend who knows the file."""


def _about_a_file(error: OSError) -> str:
    """The sentence of an error that a file system gave; raises what is our own mistake."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}: free some space and run the same command again"
    if error.errno not in _OF_FILES or error.filename is None:
        raise error
    path = error.filename2 or error.filename
    return f"{path} cannot be read or written ({error.strerror}): mend that, and run the same command again"


_said: list[socket.socket] = []


def _says_it_first(sentence: str) -> bool:
    """Ranks of one machine that end for the same reason at the same time say so once."""
    if "LOCAL_RANK" not in os.environ or sys.platform != "linux":
        return True
    import socket  # not for every command

    # a name without a file, which is free again when its process ends
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0cn_clip.{os.getppid()}.{zlib.crc32(sentence.encode()):08x}")
    except OSError:
        return False
    _said.append(claim)
    return True


def _end(sentence: str, code: int) -> NoReturn:
    if _says_it_first(sentence):
        sys.stderr.write(f"{sentence}\n")  # in one piece: other ranks write to the same stream
        sys.stderr.flush()
    marker = os.environ.get(EXIT_MARKER)
    if marker and code in (EXIT_USER_ERROR, EXIT_PREEMPTED):
        with open(marker, "w") as file:  # noqa: PTH123  # pathlib is slow to import, and this module is always imported
            file.write(str(code))
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process; a worker of torchrun without tearing the interpreter down.

    gloo's threads outlive the process group and may release a tensor then, which aborts a finished run (seen in one of
    some fifty runs: "terminate called without an active exception").
    """
    if "LOCAL_RANK" in os.environ:
        atexit._run_exitfuncs()  # loader workers, log files: all that Python itself would close
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
