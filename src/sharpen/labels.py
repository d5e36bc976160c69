"""Labels: what people say of trajectories. Files that outlive runs, one line a label, and what follows from them.

A label speaks for the text it was given on (``content``), wherever that turns up again. A file is only ever appended to.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from msgspec.structs import replace

from sharpen.errors import FormatError
from sharpen.formats.base import key_given_twice
from sharpen.records import Agreement, Label, Purity, SampleKey, Trajectory
from sharpen.stats import krippendorff_alpha, labels_needed, purity_bound
from sharpen.store.files import digest, writing
from sharpen.store.segments import order

Said = Literal["good", "bad", "unsure"]
BAR = 0.9
LEVEL = 0.95


def content(trajectory: Trajectory) -> str:
    """16 hex digits that name what a trajectory says and how it ended; not when, by whom, or in which tokens."""
    threads = [thread.messages for thread in trajectory.threads]
    return digest([trajectory.key.task, trajectory.messages, threads, trajectory.stop, trajectory.outcome])


def copy_of(trajectory: Trajectory) -> Trajectory:
    """All of it that can be read or judged: without token ids."""
    return replace(trajectory, turns=(), threads=tuple(replace(thread, turns=()) for thread in trajectory.threads))


# ---------------------------------------------------------------- files


@dataclass
class Labels:
    """Every line of a labels file or folder. ``notes`` say what was wrong with it and did no harm."""

    lines: list[Label] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def standing(self) -> dict[str, dict[str, Label]]:
        """By content, then by labeller: the last that each said of it, withdrawn ones left out."""
        by_content: dict[str, dict[str, Label]] = defaultdict(dict)
        for line in self.lines:
            by_content[line.digest].pop(line.labeller, None)
            if line.label != "withdrawn":
                by_content[line.digest][line.labeller] = line
        return {name: said for name, said in by_content.items() if said}

    def changed(self) -> int:
        """How many trajectories a labeller called good and later bad, or the other way round, without taking it back: the last word counts."""
        last: dict[tuple[str, str], str] = {}
        minds: set[tuple[str, str]] = set()
        for line in self.lines:
            who = (line.digest, line.labeller)
            if {last.get(who), line.label} == {"good", "bad"}:
                minds.add(who)
            last[who] = line.label
        return len(minds)

    def agreement(self) -> Agreement:
        """How far the labellers agree where two or more said good or bad of the same trajectory."""
        units = [[line.label for line in said.values() if line.label != "unsure"] for said in self.standing().values()]
        raw, alpha, n = krippendorff_alpha(units)
        return Agreement(labellers=tuple(sorted({line.labeller for line in self.lines})), n=n, raw=raw, alpha=alpha)


def read_labels(place: Path) -> Labels:
    """The labels in a file, or in all ``.jsonl`` files of a folder; none where there is nothing yet.

    A last line that a kill tore is left out and said; any other line that is no label is a FormatError with its place.
    """
    found = Labels()
    decode = msgspec.json.Decoder(Label).decode
    for path in sorted(place.glob("*.jsonl")) if place.is_dir() else [place]:
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FormatError(f"the labels in {path} cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found.lines.append(decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                if number == len(lines):
                    found.notes.append(f"{path}: the last line is torn and not used")
                    continue
                raise FormatError(f"{path}:{number} is no label ({error}); mend that line or delete it") from None
            if (key := key_given_twice(line, msgspec.json.decode(line))) is not None:
                raise FormatError(f"{path}:{number} has the key {key!r} twice; delete one")
    if changed := found.changed():
        found.notes.append(f"{changed} trajectories were called both good and bad by the same labeller; the last word counts")
    disagreed = sum({"good", "bad"} <= {line.label for line in said.values()} for said in found.standing().values())
    if disagreed:
        found.notes.append(f"labellers disagree on {disagreed} trajectories; most of them decide, and a tie is unsure")
    return found


def write_label(path: Path, label: Label) -> None:
    """Append one label, synced before this returns. Several processes may write to one file; a line that a kill tore makes room."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if torn := _unended(file):
                try:
                    msgspec.json.decode(torn, type=Label)
                    file.write(b"\n")
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    file.truncate(file.seek(0, os.SEEK_END) - len(torn))
            file.write(msgspec.json.encode(label) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _unended(file: BinaryIO) -> bytes:
    """The last line, where no newline ends it."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return b""
    file.seek(0)
    return file.read().rpartition(b"\n")[2]


# ---------------------------------------------------------------- which to show


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A trajectory drawn to be labelled, and how: what its label will say of that."""

    key: SampleKey
    why: Literal["random", "disagreement"] = "random"
    stratum: str = "all"
    of: int
    inclusion: float
    population: str


def population(keys: Collection[SampleKey]) -> str:
    """What names a set of rows, whatever their order."""
    return digest(sorted(keys, key=order))


def shuffled(keys: Collection[SampleKey]) -> list[SampleKey]:
    """The rows in the order in which they are to be labelled, always the same: any beginning of it is a simple random sample of all of them."""
    drawn = sorted(keys, key=order)
    random.Random(f"labels/{population(drawn)}").shuffle(drawn)
    return drawn


def draw(drawn: Sequence[SampleKey], wanted: int, disagreed: Collection[SampleKey] | None = None) -> list[Shown]:
    """Every row of ``drawn``, which is in random order, as it is to be shown, of which ``wanted`` are hoped to be labelled.

    With ``disagreed`` (rows of which two verifiers say different things) these are a stratum of their own and every second one shown is from it while
    it lasts: where bad rows are likelier, each label is worth more, and the estimate weighs them down again. Within a stratum the order is random.
    """
    name = population(drawn)
    if disagreed is None:
        inclusion = min(1.0, wanted / max(len(drawn), 1))
        return [Shown(key=key, of=len(drawn), inclusion=inclusion, population=name) for key in drawn]
    strata = {"disagreed": [key for key in drawn if key in disagreed], "agreed": [key for key in drawn if key not in disagreed]}
    half = min(wanted // 2 + wanted % 2, len(strata["disagreed"]))
    hoped = {"disagreed": half, "agreed": wanted - half}

    def shown(key: SampleKey, stratum: str) -> Shown:
        size = len(strata[stratum])
        inclusion = min(1.0, max(hoped[stratum], 1) / size)
        return Shown(key=key, why="disagreement", stratum=stratum, of=size, inclusion=inclusion, population=name)

    columns = [[shown(key, stratum) for key in keys] for stratum, keys in strata.items()]
    return [one for pair in zip_longest(*columns) for one in pair if one is not None]


# ---------------------------------------------------------------- what follows


def settled(said: Iterable[Label]) -> Said:
    """What the labellers of one trajectory say together: the word of most of those who are sure; a tie, or nobody sure, is unsure."""
    count = Counter(line.label for line in said)
    if count["good"] == count["bad"]:
        return "unsure"
    return "good" if count["good"] > count["bad"] else "bad"


def measure(rows: Mapping[SampleKey, str], labels: Labels, bar: float = BAR) -> Purity:
    """The purity of ``rows`` (content by key) by the labels that speak for them. Nothing is estimated from labels on other texts; they are counted.

    Random labels estimate by themselves; those drawn by disagreement do so with the weights of their strata, if they were drawn from these very rows.
    The two kinds are not mixed: whichever are more decide.

    The bounds hold however often one looks (``stats.purity_bound``): whoever labels until the bar is settled is misled no more often than they say.
    """
    notes = list(labels.notes)
    standing, texts = labels.standing(), set(rows.values())
    here = {name: said for name, said in standing.items() if name in texts}
    if others := len(standing) - len(here):
        elsewhere = {line.key for name, said in standing.items() if name not in here for line in said.values()}
        same = len(elsewhere & rows.keys())
        gone = f", {same} of which were labelled under the same key with another text" if same else ""
        notes.append(f"{others} labelled trajectories are not among these rows and say nothing of them{gone}")
    # The same text may be several rows: what is said of it holds for each.
    by_key = {key: here[name] for key, name in rows.items() if name in here}
    name = population(rows)
    ways: dict[str, dict[SampleKey, tuple[str, Said]]] = {"random": {}, "disagreement": {}}
    sizes: dict[str, dict[str, int]] = {"random": {"all": len(rows)}, "disagreement": {}}
    strangers = 0
    for key, said in by_key.items():
        first = next(iter(said.values()))
        if first.why == "disagreement" and first.population != name:
            strangers += 1
            continue
        ways[first.why][key] = (first.stratum, settled(said.values()))
        if first.why == "disagreement":
            sizes["disagreement"][first.stratum] = first.of
    if strangers:
        notes.append(
            f"{strangers} labels were drawn by disagreement from other rows: their weights are not known here, and they are not used"
        )
    way = "disagreement" if len(ways["disagreement"]) > len(ways["random"]) else "random"
    if unused := len(ways["random" if way == "disagreement" else "disagreement"]):
        notes.append(f"{unused} labels were drawn in another way than most and are not used")
    size = sizes[way]
    if way == "disagreement" and (rest := len(rows) - sum(size.values())):
        size["agreed" if "disagreed" in size else "disagreed"] = rest
    counts = {stratum: Counter(word for of, word in ways[way].values() if of == stratum) for stratum in size}
    strata = [(counts[stratum]["good"], counts[stratum].total(), size[stratum]) for stratum in size]
    total = sum(counts.values(), Counter[Said]())
    share = purity_bound(strata, LEVEL)
    missing = labels_needed(strata, bar, LEVEL) if rows else None
    if share.low >= bar:
        outcome: Literal["clears", "below", "open"] = "clears"
    else:
        surely = purity_bound(strata, LEVEL, "upper").high < bar
        outcome = "below" if surely or (missing is None and rows) else "open"
    return Purity(
        rows=len(rows), good=total["good"], bad=total["bad"], unsure=total["unsure"], share=share, bar=bar,
        outcome=outcome, missing=0 if outcome != "open" else missing or 0, notes=tuple(notes),
    )  # fmt: skip
