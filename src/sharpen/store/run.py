"""A run folder: one coordinator, resolved settings, a ledger, and stages that are either done or redone."""

from __future__ import annotations

import difflib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sharpen.errors import RunError
from sharpen.records import Record, Spent
from sharpen.store.files import append, digest, file_digest, make_folder, read_json, sync, sync_all, write_atomic, write_json, writing

R = TypeVar("R")
SETTINGS = "run.yaml"
LEDGER = "ledger.jsonl"
MANIFEST = "stage.json"
ENDED = "ended"  # the ledger's event that names the rungs there were
CONCLUSIONS = (
    "decision.json",
    "evaluation*.json",
    "purity.json",
    "teacher.json",
    "distillation.json",
    "diversity.json",
    "behaviour.json",
    "faults.json",
    "filtered.json",
    "advice.json",
    "checks.json",
    "rl",
)  # of a ladder, from stages: cheap to come to again


class Manifest(Record, frozen=True, kw_only=True):
    """What a finished stage was made from and what it left.

    ``outputs`` maps file names to sha256. ``inside_s`` are the seconds, of all its ``seconds``, with work in the engine or the trainer.
    ``spent`` is what it asked of policies, in all commands that worked on it: more than its outputs hold where tries broke or were cut short, less where
    it took over ``taken`` tries that another stage had made, and paid. ``judging`` is what its verifier asked.
    """

    stage: str
    inputs: dict[str, str]
    settings: str
    outputs: dict[str, str]
    seconds: float
    sampled_tokens: int = 0
    trained_tokens: int = 0
    inside_s: float = 0.0
    spent: Spent = Spent()
    judging: Spent = Spent()
    taken: int = 0
    versions: dict[str, str] = {}


class Run:
    """The folder of one run, held by one process at a time. ``repaired`` says in a line what a kill had left torn when it was opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repaired = ""
        self._lock: int | None = None

    @classmethod
    def open(cls, folder: Path, settings: str, resolve: Callable[[str], str] = str) -> Run:
        """Lock the folder; make it, or see that it was made with the same resolved ``settings`` (YAML text). ``resolve`` adds what settings that an earlier
        version wrote do not hold yet.

        RunError where another process holds it, or where the settings differ: the message carries the diff. Where no stage was ever
        finished, as after a mistake in the settings, the new ones take their place.
        """
        run = cls(folder)
        with writing(folder):
            make_folder(folder)
        run._take_lock()
        try:
            run._mend()
            known = run.settings()
            if known is None or not any("stage" in line for line in run.ledger()):
                if known is None and (folder / "rungs").exists():
                    raise RunError(f"{folder} holds rungs but no {SETTINGS}; restore that file, or choose another --name")
                write_atomic(folder / SETTINGS, settings.encode())
            elif known != settings and (known := resolve(known)) != settings:
                diff = [
                    line
                    for line in difflib.unified_diff(known.splitlines(), settings.splitlines(), "the run", "now", n=0, lineterm="")
                    if not line.startswith("@@")
                ]
                raise RunError(
                    f"{folder} was made with other settings; give them back, or add --fork NEW to go on under another name\n"
                    + "\n".join(diff)
                )
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def hold(cls, folder: Path) -> Run:
        """Lock a folder that is no run, only to work in it. RunError where another process holds it."""
        run = cls(folder)
        with writing(folder):
            make_folder(folder)
        run._take_lock()
        return run

    def settings(self) -> str | None:
        path = self.folder / SETTINGS
        return path.read_text() if path.exists() else None

    def _take_lock(self) -> None:
        with writing(self.folder):
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode().strip() or "another process"
            os.close(handle)
            raise RunError(f"{self.folder} is in use by process {holder}; wait for it, or choose another folder") from None
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._lock = handle

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def stage(self, name: str, inputs: Mapping[str, str], settings: Any) -> Stage:
        """A stage of this run. ``inputs`` name what it is made from by digest."""
        return Stage(self, name, dict(inputs), digest(settings))

    def note(self, line: Any) -> None:
        """One more line in the ledger, synced."""
        path = self.folder / LEDGER
        with writing(path):
            new = not path.exists()
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                append(handle, msgspec.json.encode(line) + b"\n")
                os.fsync(handle)
            finally:
                os.close(handle)
            if new:
                sync(self.folder)

    def _mend(self) -> None:
        """Cut off a last line of the ledger that a kill tore: the next would join it."""
        path = self.folder / LEDGER
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            with writing(path):
                os.truncate(path, path.stat().st_size - len(lines[-1]))
            torn = f"{path}: the last line was torn by a kill and is cut off ({len(lines[-1])} bytes)"
            self.repaired = f"{torn}; what it told is in the stages' own files, or is told again"
            self.note({"event": "repaired", "what": self.repaired})

    def ledger(self) -> list[dict[str, Any]]:
        """Every line so far. A line that cannot be read is skipped: one that is being written, or that a kill tore."""
        path = self.folder / LEDGER
        lines: list[dict[str, Any]] = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                lines.append(msgspec.json.decode(line))
            except msgspec.DecodeError:
                continue
        return lines


def existing(folder: Path, what: str = "run or work folder") -> Path:
    """``folder``, where it is there. RunError where it is not, with the nearest name of what lies beside it; nothing is made."""
    if folder.is_dir():
        return folder
    if folder.exists():
        raise RunError(f"{folder} is a file; name a {what}")
    lost = next(path for path in (folder, *folder.parents) if path.parent.is_dir())
    beside = sorted(path.name for path in lost.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    if close := difflib.get_close_matches(lost.name, beside, n=1, cutoff=0.5):
        there = f"did you mean {lost.with_name(close[0]) / folder.relative_to(lost)}?"
    elif beside:
        there = f"{lost.parent} has {', '.join(beside[:8])}" + (f" and {len(beside) - 8} more" if len(beside) > 8 else "")
    else:
        there = f"there is no folder in {lost.parent}"
    raise RunError(f"no such {what}: {folder}; {there}")


def lost_rungs(folder: Path) -> list[str]:
    """The rungs that the run in ``folder`` had when it ended last, and whose folders somebody deleted since."""
    ended: list[str] = next((line["rungs"] for line in reversed(Run(folder).ledger()) if line.get("event") == ENDED), [])
    return [name for name in ended if not (folder / "rungs" / name).is_dir()]


def check_rungs(folder: Path) -> None:
    """RunError where a rung has lost its folder: what is left does not say which rung the run ships."""
    if lost := lost_rungs(folder):
        gone = " and ".join(f"{folder / 'rungs' / name}" for name in lost)
        raise RunError(
            f"{gone} {'is' if len(lost) == 1 else 'are'} gone, so what the run ships is not known; put it back, or give sharpen run again"
        )


def fork(old: Path, new: Path, settings: str) -> None:
    """Copy a run's folder under a new name, with other ``settings``. Stages whose inputs and settings still hold are not done again.

    What the old run concluded from its stages is not copied: the new one comes to its own conclusions, and shows no others.
    """
    if new.exists():
        raise RunError(f"{new} exists already; choose another name for --fork")
    if not (old / SETTINGS).exists():
        raise RunError(f"there is no run in {old} to fork; leave out --fork")
    with writing(new):
        staged = new.with_name(f".{new.name}.forking")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(old, staged, ignore=shutil.ignore_patterns(".lock", SETTINGS, "report.html", *CONCLUSIONS))
        write_atomic(staged / SETTINGS, settings.encode())
        sync_all(staged)
        staged.replace(new)
        sync(new.parent)


class Stage:
    """Maps (inputs, settings) to files and one committed manifest. Nothing counts until the manifest is there."""

    def __init__(self, run: Run, name: str, inputs: dict[str, str], settings: str) -> None:
        self.run = run
        self.name = name
        self.folder = run.folder / name
        self.inputs = inputs
        self.settings = settings
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this command began it."""
        return time.monotonic() - self.started

    def manifest(self) -> Manifest | None:
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Manifest)
        except msgspec.MsgspecError as error:
            raise RunError(f"{path} cannot be read ({error}); delete it, and the stage is done again") from error

    def done(self) -> bool:
        """Whether the stage is committed, from these inputs and settings, with every output in place.

        Outputs that are gone make it not done (it is done again); outputs that changed are a RunError, because something
        else may rest on them.
        """
        manifest = self.manifest()
        if manifest is None or manifest.inputs != self.inputs or manifest.settings != self.settings:
            return False
        for name, sha in manifest.outputs.items():
            path = self.folder / name
            if not path.exists():
                return False
            if file_digest(path) != sha:
                raise RunError(f"{path} is not what stage {self.name} wrote; restore it, or delete {self.folder} to do the stage again")
        return True

    def begin(self) -> None:
        """Take back an older commitment, so that a kill from here on cannot leave new files under an old manifest."""
        with writing(self.folder):
            make_folder(self.folder)
            (self.folder / MANIFEST).unlink(missing_ok=True)
        self.started = time.monotonic()

    def commit(
        self,
        outputs: Sequence[Path],
        *,
        sampled_tokens: int = 0,
        trained_tokens: int = 0,
        inside_s: float = 0.0,
        spent: Spent | None = None,
        judging: Spent | None = None,
        taken: int = 0,
    ) -> Manifest:
        """Make everything in the stage's folder survive a power cut, then write the manifest, then the ledger line."""
        with writing(self.folder):
            sync_all(self.folder)
        manifest = Manifest(
            stage=self.name,
            inputs=self.inputs,
            settings=self.settings,
            outputs={str(path.relative_to(self.folder)): file_digest(path) for path in outputs},
            seconds=round(self.seconds, 3),
            sampled_tokens=sampled_tokens,
            trained_tokens=trained_tokens,
            inside_s=round(inside_s, 3),
            spent=spent or Spent(),
            judging=judging or Spent(),
            taken=taken,
            versions=dict(_versions()),
        )
        write_json(self.folder / MANIFEST, manifest)
        self.run.note(manifest)
        return manifest

    def read(self, name: str, record: type[R]) -> R:
        """One output, decoded."""
        path = self.folder / name
        try:
            return read_json(path, record)
        except (OSError, msgspec.MsgspecError) as error:
            raise RunError(f"{path} cannot be read ({error}); delete {self.folder}, and the stage is done again") from error


@cache  # each reads a long file: a tenth of a second for each stage
def _versions() -> Mapping[str, str]:
    """What is installed: the packages whose versions change results."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for package in ("sharpen", "torch", "transformers", "trl", "peft", "openvino-genai", "vllm", "textworld", "reasoning-gym"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
