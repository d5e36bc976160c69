"""Trajectories from and to files: ``read``, ``write``, and ``detect`` for a file that does not say what it is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from sharpen.chat.base import said
from sharpen.errors import FormatError
from sharpen.formats import atif, hub, inspect_eval, openai, sharegpt, trl, verifiers_traces
from sharpen.formats.base import ENVIRONMENT, MAX_BYTES, NOT_JSON, RECORDED, Draft, Exported, Fault, Format, Imported, check, one_of
from sharpen.records import SampleKey, Trajectory
from sharpen.store.files import digest

# In the order in which ``detect`` asks them: what is particular first.
FORMATS: dict[str, Format] = {
    one.name: one
    for one in (inspect_eval.FORMAT, verifiers_traces.FORMAT, hub.FORMAT, atif.FORMAT, sharegpt.FORMAT, openai.FORMAT, trl.FORMAT)
}
PROBED = 20  # readable pieces that are looked at before a file counts as of no known format


class Reading:
    """A file, or all files of a folder, read as it is iterated: one piece in memory at a time. ``imported`` says what became of it so far.

    With ``strict`` the first piece that cannot be taken ends the reading with a FormatError, ``file:line: reason``; without, it is counted in
    ``imported.left_out``. A file in which nothing could be read is an error either way, and what was in a piece that was kept but has no
    place in a trajectory is counted in ``imported.lost`` either way.
    """

    def __init__(self, path: Path, format: Format, *, strict: bool, max_bytes: int, agent: str | None) -> None:
        self.path, self.format, self.strict, self.max_bytes, self.agent = path, format, strict, max_bytes, agent
        self._reset()

    def _reset(self) -> None:
        self._pieces = self._kept = 0
        self._left_out, self._lost, self._tries = Counter[str](), Counter[str](), Counter[str]()
        self._examples: dict[str, str] = {}

    @property
    def imported(self) -> Imported:
        return Imported(
            path=str(self.path),
            format=self.format.name,
            pieces=self._pieces,
            kept=self._kept,
            left_out=dict(self._left_out.most_common()),
            examples=dict(self._examples),
            lost=dict(self._lost.most_common()),
        )

    def __iter__(self) -> Iterator[Trajectory]:
        self._reset()
        for path in files(self.path, self.format):
            for where, raw in self.format.units(path, self.max_bytes):
                self._pieces += 1
                lost: list[str] = []
                try:
                    if isinstance(raw, Fault):
                        raise raw
                    draft = self.format.parse(raw, lost.append)
                    check(draft.messages, draft.stop)
                except (Fault, RecursionError) as error:
                    fault = error if isinstance(error, Fault) else Fault(NOT_JSON, "nested too deeply")
                    if self.strict:
                        raise FormatError(f"{where}: {fault}") from None
                    self._left_out[fault.reason] += 1
                    self._examples.setdefault(fault.reason, f"{where}: {fault}")
                    continue
                self._kept += 1
                self._lost.update(lost)
                yield self._trajectory(draft)
        if not self._pieces:
            raise FormatError(f"{self.path} holds no trajectories: it is empty")
        if not self._kept:
            raise FormatError(
                f"{self.path} holds nothing that can be read as {self.format.name}; first: {next(iter(self._examples.values()))}"
            )

    def _trajectory(self, draft: Draft) -> Trajectory:
        agent = self.agent or draft.agent or ENVIRONMENT
        key, actions = draft.key, draft.actions
        if key is None:
            actions = actions or tuple(said(message) for message in draft.messages if message.role == "assistant")
            task = draft.task or opening(draft)
            index = draft.index if draft.index is not None else self._tries[task]
            self._tries[task] += 1
            key = SampleKey(model=agent, task=task, environment=ENVIRONMENT, sampling=RECORDED, index=index)
        return Trajectory(
            key=key,
            agent=agent,
            messages=draft.messages,
            tools=draft.tools,
            turns=draft.turns,
            actions=actions,
            stop=draft.stop,
            outcome=draft.outcome,
            cost=draft.cost,
            error=draft.error,
            choice=draft.choice,
            maker=draft.maker,
            hint=draft.hint,
        )


def opening(draft: Draft) -> str:
    """A task's name where the file gives none: a digest of the messages before the first assistant turn and of the tools."""
    before = list(itertools.takewhile(lambda message: message.role != "assistant", draft.messages))
    return digest([before, draft.tools])


def read(
    path: str | Path, format: str | None = None, *, strict: bool = True, max_bytes: int = MAX_BYTES, agent: str | None = None
) -> Reading:
    """The trajectories in a file, or in all files of a folder.

    ``format`` is one of ``FORMATS``, found out where it is None. ``strict``: see ``Reading``. ``max_bytes`` is the longest line, document or
    sample that is read. ``agent`` names who made the trajectories, over what the file says. Keys: the task is what the file names, else a
    digest of the opening messages and tools, the index counts the tries of a task in the file. Rewards and scores go into ``outcome``: they
    are what somebody recorded, not verdicts.
    """
    path = Path(path)
    found = one_of(format, FORMATS) if format is not None else FORMATS[detect(path, max_bytes=max_bytes)]
    return Reading(path, found, strict=strict, max_bytes=max_bytes, agent=agent)


def detect(path: str | Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The name of the format of a file or folder, from its suffix and its first readable piece. FormatError where it is none."""
    path = Path(path)
    if path.suffix not in {suffix for one in FORMATS.values() for suffix in one.suffixes} and not path.is_dir():
        if not path.exists():
            raise FormatError(f"{path} does not exist")
        raise FormatError(f"{path}: the suffix {path.suffix!r} does not say what it is; name its format: {', '.join(FORMATS)}")
    fault = ""
    for one in FORMATS.values():
        chosen = list(itertools.islice(files(path, one, missing_ok=True), 1))
        for file in chosen:
            for where, raw in itertools.islice(one.units(file, max_bytes), PROBED):
                if isinstance(raw, Fault):
                    fault = fault or f"{where}: {raw}"
                elif one.recognise(raw):
                    return one.name
                else:
                    break
    if fault:
        raise FormatError(fault)
    raise FormatError(f"{path} is of no known format, or empty; name its format: {', '.join(FORMATS)}")


def files(path: Path, format: Format, *, missing_ok: bool = False) -> Iterator[Path]:
    """``path`` itself, or the files under it that have one of the format's suffixes, in order of their names."""
    if not path.is_dir():
        if not missing_ok or path.suffix in format.suffixes:
            yield path
        return
    found = sorted(one for one in path.rglob("*") if one.suffix in format.suffixes and one.is_file() and not one.name.startswith("."))
    if not found and not missing_ok:
        raise FormatError(f"{path} holds no files of the format {format.name} ({', '.join(format.suffixes)})")
    yield from found


def write(trajectories: Iterable[Trajectory], path: str | Path, format: str) -> Exported:
    """Write ``trajectories`` in a format, whole or not at all, as they come. ``Exported.loses`` says what the format cannot carry.

    FormatError where the format is only read, does not go by that suffix, or has no way to say what a trajectory holds.
    """
    path = Path(path)
    chosen = one_of(format, FORMATS)
    if chosen.write is None:
        writable = ", ".join(name for name, one in FORMATS.items() if one.write is not None)
        raise FormatError(f"{format} is only read, not written; choose one of {writable}")
    if path.suffix not in chosen.writes:
        raise FormatError(
            f"{path}: {format} is written with the suffix {' or '.join(suffix or 'of a folder: none' for suffix in chosen.writes)}"
        )
    beside = 0

    def watched() -> Iterator[Trajectory]:
        nonlocal beside
        for trajectory in trajectories:
            beside += bool(trajectory.threads)
            yield trajectory

    written = chosen.write(watched(), path)
    threads = (f"the conversations beside the main one, in {beside} trajectories",) if beside else ()
    return Exported(path=str(path), format=format, written=written, loses=(*chosen.loses, *threads))
