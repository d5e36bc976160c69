"""``kill -9`` a run at random moments, give the same command again until it ends, and look whether anything was lost or made twice.

    python benchmarks/kills.py                                                                       # 50 kills over scripted ladders
    python benchmarks/kills.py --settings examples/calculator/calculator.yaml --kills 5 --python .venv/bin/python    # over a real run

First the command runs undisturbed, which says how long it takes from the ladder's start (tasks and libraries are loaded) to its end. Then it is killed
at up to ten moments at random over that time, the same command given again after each, and let run to its end; and so on in a fresh folder
until all kills are spent.

A try counts as finished when ``Segments.add`` has returned, which is when the run may announce it: the child writes down each such moment. After each
kill, and at the end: everything announced is on disk, nothing that was there is gone or changed by a byte, and no try is there twice.
SIGKILL itself hardly ever tears a line, since one goes to the system in one write; what a power cut leaves is made by hand: after every other kill half a
record is added to each journal, and half a line to the ledger. The next start has to cut these off and say so, each once. Demonstrations are not
counted until their stage is done: no tokens are paid for them, and a stage that was cut short makes them again.

A scripted run is determined to the bit, so it must make as many tries as the undisturbed one, and the same tables: evaluation.json, decision.json and
selection.json of every rung.
A real engine's batches form by the clock, so of a run with ``--settings`` it is only reported which tables are equal. Exit status 1 where
something that must hold does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

A_RUN = 10  # kills of one run
SCRIPTED = {
    "name": "ladder",
    "seed": 3,
    "sampling": {"n": 4, "max_tokens": 32},
    "evaluation": {"n": 4, "k": [1, 4], "max_tokens": 32},
    "selection": {"cap": 2},
    "ladder": {"rungs": ["few-shot", "sft", "rejection-sampling", "expert-iteration"], "rounds": 2},
}
SPLITS = {"demo": 12, "train": 40, "dev": 40, "test": 30}
Lines = dict[tuple[str, str], bytes]  # (folder of records, key as JSON): the line


def scripted(work: Path) -> Path:
    """Settings of a ladder on sums, which needs no torch and starts in a second: the model is right one time in five."""
    from sharpen.policies.scripted import scripted_model

    scripted_model(work / "base", skill=0.2)
    draw = random.Random(7)
    sums = {(draw.randrange(100), draw.randrange(100)) for _ in range(2 * sum(SPLITS.values()))}
    rows = [{"prompt": f"Calculate {a} + {b}.", "reference": str(a + b)} for a, b in sorted(sums)[: sum(SPLITS.values())]]
    (work / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "exact.py").write_text("def verify(answer, reference):\n    return answer.strip() == reference\n")
    tasks = {
        "source": "jsonl",
        "path": str(work / "sums.jsonl"),
        "verifier": f"{work / 'exact.py'}:verify",
        "exact": True,
        "splits": SPLITS,
    }
    settings = work / "ladder.yaml"
    settings.write_text(yaml.safe_dump({**SCRIPTED, "tasks": tasks, "model": str(work / "base")}))
    return settings


# ---------------------------------------------------------------- the child


def child(announced: Path, command: list[str]) -> None:
    """``sharpen COMMAND``, writing down that it climbs, and then what is on disk as soon as that is known."""
    from sharpen.cli import main
    from sharpen.ladder import Ladder
    from sharpen.store.segments import Segments

    real, climb = Segments.add, Ladder.climb
    handle = os.open(announced, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def climbing(self: Any) -> Any:
        announced.with_suffix(".climbs").write_text(str(os.getpid()))
        return climb(self)

    Ladder.climb = climbing  # type: ignore[method-assign]

    async def add(self: Any, record: Any) -> None:
        await real(self, record)
        key = {name: getattr(record.key, name) for name in record.key.__struct_fields__}
        os.write(handle, json.dumps([str(self.folder), key]).encode() + b"\n")

    Segments.add = add  # type: ignore[method-assign]
    sys.exit(main(command))


# ---------------------------------------------------------------- what is on disk


def name_of(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def stored(folder: Path) -> tuple[Lines, int]:
    """Every whole line, and how many tries are there twice: another line with the same key."""
    found: Lines = {}
    twice = 0
    for path in sorted(folder.rglob("*.jsonl")):
        place = path.parent
        unfinished = place.parent.name == "demonstrations" and not (place.parent / "stage.json").exists()
        if place.name not in ("trajectories", "verdicts") or unfinished:
            continue
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                at = (str(place.relative_to(folder)), name_of(json.loads(line)["key"]))
                twice += found.get(at, line) != line  # a journal that is just sealed lies beside its segment for a moment
                found[at] = line
    return found, twice


def written_twice(folder: Path) -> int:
    """Lines of a finished run that repeat a key of their folder."""
    lines = (path.read_bytes().splitlines() for place in ("trajectories", "verdicts") for path in folder.rglob(f"{place}/*.jsonl"))
    return sum(map(len, lines)) - len(stored(folder)[0])


def tries(lines: Lines) -> int:
    return sum(place.endswith("trajectories") for place, _ in lines)


def tables(folder: Path) -> dict[str, Any]:
    """Everything a run concludes, without what a clock says."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if path.name in ("decision.json", "selection.json") or path.name.startswith("evaluation"):
            found[str(path.relative_to(folder))] = value = json.loads(path.read_bytes())
            if "cost" in value:
                value["cost"].pop("seconds")
    return found


def stage_of(folder: Path) -> str:
    """What was going on: the kind of stage whose files changed last."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    if not paths:
        return "before the first stage"
    parts = max(paths, key=lambda path: path.stat().st_mtime_ns).relative_to(folder).parts
    kind = next((part.split("-")[0] for part in parts if part.split("-")[0] in ("demonstrations", "sampling", "dev", "test", "panel")), "")
    return kind or "training and decisions"


def tear(folder: Path, *, by_hand: bool) -> set[tuple[Path, int]]:
    """Which journals end in half a line, or the ledger does, and where; ``by_hand`` each gets one, as a power cut would leave it."""
    torn = set()
    for path in (*folder.rglob("journal.jsonl"), folder / "ledger.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and "demonstrations" not in path.parts:
            if by_hand and lines[-1].endswith(b"\n"):
                lines.append(lines[-1][: len(lines[-1]) // 2])
                path.write_bytes(b"".join(lines))
            if not lines[-1].endswith(b"\n"):
                torn.add((path, sum(map(len, lines))))
    return torn


def repaired(folder: Path) -> int:
    path = folder / "ledger.jsonl"
    return sum(b'"event":"repaired"' in line for line in path.read_bytes().splitlines()) if path.exists() else 0


# ---------------------------------------------------------------- killing


class Killer:
    """Gives one command again and again, and counts what is wrong."""

    def __init__(self, python: str, settings: Path, work: Path) -> None:
        self.python, self.settings, self.work = python, settings, work
        self.name = (yaml.safe_load(settings.read_text()) or {}).get("name", settings.stem)
        self.stages = Counter[str]()
        self.kills = self.torn = self.said = self.tries = self.twice = self.lost = self.changed = self.runs = self.cut_off = 0
        self.different: list[str] = []

    def start(self, where: str) -> tuple[subprocess.Popen[bytes], Path]:
        folder = self.work / where / self.name
        announced = self.work / f"{where}.announced"
        command = [self.python, __file__, "--child", str(announced), "run", str(self.settings), "--runs", str(self.work / where)]
        with (self.work / f"{where}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        climbs = announced.with_suffix(".climbs")
        while process.poll() is None and not (climbs.exists() and climbs.read_text() == str(process.pid)):
            time.sleep(0.002)
        return process, folder

    def undisturbed(self) -> tuple[float, Path]:
        """Seconds from the ladder's start to the end."""
        process, folder = self.start("calm")
        began = time.monotonic()
        self.ended(process, "calm")
        return time.monotonic() - began, folder

    def ended(self, process: subprocess.Popen[bytes], where: str) -> None:
        if process.wait():
            sys.exit(f"the run ended with {process.returncode}:\n{(self.work / f'{where}.log').read_text()[-2000:]}")

    def rough(self, lives: Iterator[float]) -> Path:
        """One run to its end, killed after each of ``lives`` seconds, as far as it lives so long."""
        where = f"rough-{self.runs:02d}"
        self.runs += 1
        before: Lines = {}
        torn: set[tuple[Path, int]] = set()
        for life in lives:
            process, folder = self.start(where)
            try:
                process.wait(life)
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            self.kills += 1
            self.stages[stage_of(folder)] += 1
            before = self.check(folder, where, before)
            torn |= tear(folder, by_hand=self.kills % 2 == 0)
        else:
            process, folder = self.start(where)
        self.ended(process, where)
        after = self.check(folder, where, before)
        self.tries += tries(after)
        self.twice += written_twice(folder)
        self.torn += len(torn)
        self.said += repaired(folder)
        log = (self.work / f"{where}.log").read_text()
        self.cut_off += log.count("was torn by a kill and is cut off")
        return folder

    def check(self, folder: Path, where: str, before: Lines) -> Lines:
        """What is there now, held against what was there and what was announced."""
        now, twice = stored(folder)
        self.twice += twice
        announced = self.work / f"{where}.announced"
        for line in announced.read_bytes().splitlines() if announced.exists() else ():
            place, key = json.loads(line)
            self.lost += (str(Path(place).relative_to(folder)), name_of(key)) not in now
        self.lost += len(before.keys() - now.keys())
        self.changed += sum(now.get(at, line) != line for at, line in before.items())
        return now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--settings", type=Path, help="a real run's; default: a scripted ladder")
    parser.add_argument("--python", default=sys.executable, help="the interpreter to run it with")
    parser.add_argument("--work", type=Path, help="a new folder to keep the runs in; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write the summary as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=given.work is None)
        settings = given.settings or scripted(work)
        killer, draw = Killer(given.python, settings, work), random.Random(given.seed)
        seconds, calm = killer.undisturbed()
        expected, number = tables(calm), tries(stored(calm)[0])
        compared = equal = 0
        while killer.kills < given.kills:
            moments = sorted(draw.uniform(0, seconds) for _ in range(min(A_RUN, given.kills - killer.kills)))
            folder = killer.rough((after - before for before, after in zip([0.0, *moments], moments, strict=False)))
            found = tables(folder)
            compared += len(expected)
            same = [name for name in expected if found.get(name) == expected[name]]
            equal += len(same)
            killer.different += sorted({*expected, *found} - {*same})
    summary = {
        "settings": given.settings.name if given.settings else "scripted ladder",
        "seed": given.seed,
        "undisturbed_s": round(seconds, 1),
        "kills": killer.kills,
        "killed_in": dict(killer.stages.most_common()),
        "runs_given_again_until_they_ended": killer.runs,
        "tries_at_the_end": killer.tries,
        "tries_of_undisturbed_runs": number * killer.runs,
        "finished_tries_or_verdicts_lost": killer.lost,
        "changed_by_a_byte": killer.changed,
        "made_or_kept_twice": killer.twice,
        "torn": killer.torn,
        "torn_and_said": killer.cut_off,
        "torn_and_noted": killer.said,
        "tables": compared,
        "tables_equal": equal,
        "tables_different": sorted(set(killer.different)),
    }
    for name, value in summary.items():
        shown = ", ".join(f"{part} {count}" for part, count in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):<36}{shown}")
    if given.out:
        given.out.write_text(json.dumps(summary, indent=1) + "\n")
    unsaid = max(abs(killer.torn - killer.said), abs(killer.torn - killer.cut_off))  # by one where a kill came between the cut and the word
    wrong = killer.lost or killer.changed or killer.twice or unsaid > 1
    sys.exit(bool(wrong or (given.settings is None and (killer.different or killer.tries != number * killer.runs))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    main()
