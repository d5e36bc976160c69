"""The other side of ``workers.py``, in a process of its own: ``python -m sharpen.verifiers.worker``, frames on stdin and stdout.

It holds its own limits: address space always, processor seconds for each job, so that one whose owner was killed ends by itself. It ends when its
stdin does. Not a sandbox: it keeps accidents away from the run, not attackers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
from typing import Any

import msgspec

from sharpen.frames import Frames, write_frame

TIRED = 0.4  # of the memory limit: a worker that ever held so much is replaced


class Limits(msgspec.Struct, tag=True):
    """The first frame: ``memory_mb`` of address space."""

    memory_mb: int


class Load(msgspec.Struct, tag=True):
    """Import a module. Its own frame, so that no job's time limit pays for it."""

    module: str


class Job(msgspec.Struct, tag=True):
    """Call ``module:function`` with ``arguments``, for at most ``cpu_s`` seconds of processor time."""

    function: str
    arguments: list[Any]
    cpu_s: float


class Done(msgspec.Struct, tag=True):
    """What came of a Load or a Job. ``tired`` asks to be replaced; ``cpu_s`` is the processor time that the worker has taken so far."""

    value: Any = None
    error: str = ""
    tired: bool = False
    cpu_s: float = 0.0


def main() -> None:
    out = os.dup(1)
    with open(os.devnull, "r+b") as null:  # noqa: PTH123 - a descriptor is all that is wanted
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    inbox = Frames(0, Limits | Load | Job)
    memory, own = 0, os.getpid()
    while (frames := inbox.read()) is not None:
        for frame in frames:
            if isinstance(frame, Limits):
                memory = frame.memory_mb * 2**20
                with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
                    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            else:
                done = _work(frame)
                if os.getpid() != own:  # a verifier forked and came back twice: only the first of them answers
                    os._exit(0)
                done.tired = done.tired or _held() > TIRED * memory or _has_children()
                done.cpu_s = time.process_time()
                try:
                    write_frame(out, done)
                except (TypeError, ValueError, OverflowError) as error:
                    write_frame(out, Done(error=f"{type(error).__name__}: what was returned is not plain data: {error}"))


def _work(frame: Load | Job) -> Done:
    try:
        if isinstance(frame, Load):
            importlib.import_module(frame.module)
            return Done()
        module, _, name = frame.function.partition(":")
        limit = int(time.process_time() + frame.cpu_s) + 2
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        return Done(value=getattr(sys.modules[module], name)(*frame.arguments))
    except MemoryError:
        return Done(error="MemoryError: it needs more memory than it may have", tired=True)
    except BaseException as error:  # a verifier may call sys.exit
        return Done(error=f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".encode("utf-8", "replace").decode())


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _held() -> int:
    """The most memory that this process ever held, in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:  # noqa: PTH123 - Linux' ru_maxrss counts what the owner held when it forked
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides what becomes of the work
    main()
