"""A training in a process of its own: a job to a model folder, or nothing and one line saying why."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from sharpen.errors import Refused, SharpenError, StorageError, TrainingError
from sharpen.records import TrainingReport
from sharpen.training.base import Line, Progress, Work

_SECONDS_BETWEEN_LOOKS = 0.1


def work_in_process(module: str, job: Work, on_progress: Callable[[Progress], None] | None) -> tuple[Line, ...]:
    """Have ``module`` do ``job``, and give what it told. Its folder ``out`` is made beside and put in place when it is whole.

    The log is ``train.log`` beside ``out``. TrainingError where the process died or said that it failed, StorageError where the disk is full; ``out`` is
    then as it was before, and no process is left. A failing or interrupted ``on_progress`` ends the training.
    """
    out, config = Path(job.out), job.settings.accelerate_config
    log, work = out.with_name("train.log"), out.with_name(f".{out.name}.training")
    job = replace(job, out=str(work / "model"), watched=config is None)
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / "job.json").write_bytes(msgspec.json.encode(job))
        lines = tuple(_run(module, work, log, config, on_progress))
        shutil.rmtree(out, ignore_errors=True)
        (work / "model").rename(out)
    except OSError as error:
        raise StorageError(f"the training beside {out} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return lines


def reported(lines: Sequence[Line], started: float, *, steps: int, tokens: int, trained_tokens: int) -> TrainingReport:
    """The report of a training that told ``lines`` and ``started`` then, by ``time.monotonic``."""
    return TrainingReport(
        steps=steps,
        tokens=tokens,
        trained_tokens=trained_tokens,
        seconds=time.monotonic() - started,
        losses=tuple(line.progress.loss for line in lines if line.progress is not None),
        precision=next((line.precision for line in lines if line.precision), ""),
    )


def name_of(out: Path) -> str:
    """``002-rejection-sampling`` for ``rungs/002-rejection-sampling/model``."""
    return out.parent.name if out.name == "model" else out.name


def _run(module: str, work: Path, log: Path, config: str | None, on_progress: Callable[[Progress], None] | None) -> Iterator[Line]:
    """Run ``module`` to its end; yields its lines as they come. TrainingError or StorageError where it fails; no process outlives this."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*_launcher(config), module, str(work / "job.json")],
            stdin=subprocess.PIPE,  # never written to: its end tells the worker that this process is gone
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_environment(config),
            start_new_session=True,
        )
        try:
            for line in _lines(process, work / "progress.jsonl"):
                if line.failed:
                    raise told(line, log)
                if line.progress is not None and on_progress is not None:
                    on_progress(line.progress)
                yield line
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            if process.stdin is not None:
                process.stdin.close()
    if code or not (work / "model").is_dir():
        raise death(code, log)


def _launcher(config: str | None) -> list[str]:
    """By this interpreter, whatever PATH says. One process needs no ``accelerate launch``, which imports torch just to set variables: 2 s."""
    if config is None:
        return [sys.executable, "-m"]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--module"]


def _environment(config: str | None) -> dict[str, str]:
    """The worker's environment: nothing is asked of the network unless the user's own says so; without a config one GPU is seen."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # OpenMP threads that wait spin for a millisecond: beside any other load on the same cores that cost a quarter to a half of the speed.
    # 1000 rounds is what libgomp itself takes where it knows that cores are shared.
    quiet["GOMP_SPINCOUNT"] = "1000"
    one = {} if config is not None else {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    return {**quiet, **os.environ, **one}


def _lines(process: subprocess.Popen[bytes], path: Path) -> Iterator[Line]:
    """What the worker tells, as it tells it, until it has ended."""
    read = 0
    while True:
        ended = process.poll() is not None  # looked at before reading: what it said last is read too
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(read)
            for raw in file:
                if raw.endswith(b"\n"):  # else half-written: next time
                    read += len(raw)
                    yield msgspec.json.decode(raw, type=Line)
        if ended:
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def told(line: Line, log: Path) -> SharpenError:
    """The error that a worker told of."""
    if line.refused:
        return Refused(line.failed)
    if line.disk:
        return StorageError(f"the disk is full: {line.failed}; free some space and run the same command again (log: {log})")
    return TrainingError(f"training failed: {line.failed} (log: {log})")


def death(code: int, log: Path) -> SharpenError:
    """Why a process that said nothing is dead, from its exit code or the launcher's last words."""
    tail = log.read_bytes()[-4000:].decode(errors="replace")
    if os.strerror(errno.ENOSPC) in tail:
        return StorageError(f"the disk is full; free some space and run the same command again (log: {log})")
    killed = re.search(r"SIG[A-Z]+", tail)
    name = signal.Signals(-code).name if code < 0 else killed.group() if killed else ""
    if name == "SIGKILL":
        reason = "it was killed, most likely for want of memory; lower training.micro_tokens or training.batch_size"
    else:
        reason = f"it died of {name}" if name else f"exit code {code}; {_last(tail)}"
    return TrainingError(f"the training process is dead: {reason} (log: {log})")


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
