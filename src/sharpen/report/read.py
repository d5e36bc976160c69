"""A run folder read back as what the report shows. Everything comes from files, so a page can be made of any run, also an unfinished one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sharpen.audit import AUDIT
from sharpen.behaviour import DESCRIBED, FAULTY, FILTERED
from sharpen.chat.load import load_template
from sharpen.chat.masks import pieces
from sharpen.diversity import WRITTEN
from sharpen.errors import RunError, SharpenError
from sharpen.formats.base import RECORDED
from sharpen.ladder import DEMONSTRATED, DEMONSTRATIONS
from sharpen.models import load_model
from sharpen.policies.meter import SPENT, Bill, total
from sharpen.records import (
    Audit,
    Behaviour,
    Decision,
    DemonstrationQuality,
    Distilled,
    Diversity,
    Evaluation,
    Faults,
    Filtered,
    Pairing,
    RoundPurity,
    Row,
    SampleKey,
    Selection,
    Spent,
    TrainingReport,
    Trajectory,
    Transfer,
    Verdict,
)
from sharpen.report.page import RungView, RunView, SampleView, render
from sharpen.sampling import HINTS, WAVES, Waves
from sharpen.store.files import read_if_there, write_atomic
from sharpen.store.run import LEDGER, MANIFEST, SETTINGS, Manifest, existing, lost_rungs
from sharpen.store.rungs import CONTROL, RungName
from sharpen.store.segments import Segments


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into the run folder and return its path."""
    page = folder / "report.html"
    write_atomic(page, render(read_run(folder)).encode())
    return page


def read_run(folder: Path, samples: int = 4) -> RunView:
    """The run as far as it has come. ``samples`` trajectories are shown for each rung. RunError where there is no run."""
    if not (existing(folder) / SETTINGS).exists():
        raise RunError(f"there is no run in {folder}: it has no {SETTINGS}; name a folder that sharpen run made, such as runs/quickstart")
    settings_yaml = (folder / SETTINGS).read_text()
    notes = _ledger(folder)
    started: dict[str, Any] = next((note for note in notes if note.get("event") == "started"), {})
    rungs, solved = [], set[str]()
    for path in sorted((folder / "rungs").glob("*")):
        if (path / "decision.json").exists():
            now = {key.task for key, verdict in Segments(path / "sampling" / "verdicts", Verdict).records.items() if verdict}
            rungs.append(msgspec.structs.replace(_rung(path, folder, samples), newly_solved=len(now - solved)))
            solved |= now
    kept = [rung.name for rung in rungs if not rung.control and rung.decision and rung.decision.outcome in ("baseline", "keep")]
    rungs = [msgspec.structs.replace(rung, shipped=bool(kept) and rung.name == kept[-1]) for rung in rungs]
    places = (one for room in ("demonstrations", "rungs") for one in (folder / room).rglob(MANIFEST))
    stages = [stage for one in places if (stage := read_if_there(one, Manifest))]
    bill = read_if_there(folder / SPENT, Bill) or Bill()
    training = sum(stage.inside_s for stage in stages if stage.trained_tokens)
    sampling = sum(stage.inside_s for stage in stages if not stage.trained_tokens)
    return RunView(
        name=folder.resolve().name,
        settings_yaml=settings_yaml,
        rungs=tuple(rungs),
        demonstrations=read_if_there(folder / DEMONSTRATIONS, DemonstrationQuality),
        habits=read_if_there(folder / DEMONSTRATED, Behaviour),
        audit=read_if_there(folder / AUDIT, Audit),
        banners=(
            *(f"{folder / 'rungs' / name} is gone: what is shown as shipped may be another rung than was" for name in lost_rungs(folder)),
            *_banners(notes, rungs),
            *dict.fromkeys(rung.dev.played for rung in rungs if rung.dev and rung.dev.played),
        ),
        hardware=str(started.get("hardware", "")),
        commit=str(started.get("commit", "")),
        engine=next((str(note["engine"]) for note in reversed(notes) if note.get("event") == "engine"), ""),
        seed=int(started.get("seed", 0)),
        date=str(started.get("date", "")),
        seconds_in_engine=sampling,
        seconds_in_training=training,
        spent=bill.total,
        judging=bill.judging,
        planned=next((msgspec.convert(note["spent"], Spent) for note in notes if note.get("event") == "planned"), None),
        seconds_total=sum(float(note["seconds"]) for note in notes if note.get("event") == "stopped"),
    )


def read_samples(
    folder: Path, *, rung: str | None = None, wanted: Callable[[SampleView], bool] = lambda view: True, limit: int = 5
) -> list[SampleView]:
    """Trajectories of a run, or of a folder that a verb or an import left. Of a run those that train come first. RunError where nothing matches."""
    if (folder / "trajectories").is_dir():
        found = [view for view in _work(folder) if wanted(view)]
    else:
        read_run(folder, samples=0)
        rungs = (path for path in sorted((folder / "rungs").glob("*")) if rung is None or rung in path.name)
        found = [view for path in rungs for view in _samples(path, folder) if wanted(view)]
    if not found:
        raise RunError(
            f"no trajectory in {folder} matches; rungs: {', '.join(sorted(p.name for p in (folder / 'rungs').glob('*'))) or 'none'}"
        )
    return found[:limit]


def _rung(path: Path, folder: Path, samples: int) -> RungView:
    decision = read_if_there(path / "decision.json", Decision)
    stages = [stage for one in path.rglob(MANIFEST) if (stage := read_if_there(one, Manifest))]
    views = list(_samples(path, folder)) if samples else []
    waves = read_if_there(path / "sampling" / WAVES, Waves)
    sampling = read_if_there(path / "sampling" / MANIFEST, Manifest)
    selection = read_if_there(path / "selection.json", Selection)
    hints = read_if_there(path / HINTS / MANIFEST, Manifest)
    with_hint = Segments(path / HINTS / "trajectories", Trajectory).records
    random.Random(path.name).shuffle(views)
    views.sort(key=lambda view: not view.pieces)
    return RungView(
        name=path.name,
        method=(name.unnumbered if (name := RungName.of(path.name)) is not None else path.name).replace("-", " "),
        dev=read_if_there(path / "evaluation.json", Evaluation),
        test=read_if_there(path / "evaluation-test.json", Evaluation),
        panel=read_if_there(path / "evaluation-panel.json", Evaluation),
        gain=decision.gain if decision else None,
        decision=decision,
        selection=selection,
        sampling=sampling.spent if sampling else None,
        judging=sampling.judging if sampling else Spent(),
        taken=sampling.taken if sampling else 0,
        hints=total(hints.spent, hints.judging) if hints else None,
        kept=sum(key.sampling != RECORDED and key not in with_hint for key in selection.kept) if selection else 0,
        hinted=sum(key in with_hint for key in selection.kept) if selection else 0,
        training=read_if_there(path / "training.json", TrainingReport),
        sampled_tokens=sum(stage.sampled_tokens for stage in stages),
        trained_tokens=sum(stage.trained_tokens for stage in stages),
        minutes=sum(stage.seconds for stage in stages) / 60,
        control=path.name.endswith(CONTROL),
        budget=waves.says if waves is not None else "",
        transfer=read_if_there(path / DESCRIBED, Transfer),
        faults=read_if_there(path / FAULTY, Faults),
        filtered=read_if_there(path / FILTERED, Filtered),
        diversity=read_if_there(path / WRITTEN, Diversity),
        purity=round_.purity if (round_ := read_if_there(path / "purity.json", RoundPurity)) is not None else None,
        teacher=read_if_there(path / "teacher.json", Evaluation),
        pairing=read_if_there(path / "pairing.json", Pairing),
        distilled=read_if_there(path / "distillation.json", Distilled),
        samples=tuple([*views[: samples // 2], *views[len(views) - samples // 2 :]] if len(views) > samples else views),
    )


def _samples(path: Path, folder: Path) -> Iterator[SampleView]:
    """What a rung trained on, then what it left out; of a rung that samples nothing, its tries on dev."""
    selection = read_if_there(path / "selection.json", Selection)
    reasons = {item.key: item.reason for item in selection.left_out} if selection else {}
    kept = set(selection.kept) if selection else set()
    rows = {row.key: row for row in _rows(path)}
    template = _template(folder) if rows else None
    sampled = path / "sampling"
    if not sampled.exists():
        sampled = path.with_name(path.name.removesuffix(CONTROL)) / "sampling"  # a control draws from the real arm's tries
    for place in (folder / "demonstrations", sampled, path / HINTS) if selection else (path / "dev",):
        verdicts = Segments(place / "verdicts", Verdict).records
        for key, trajectory in Segments(place / "trajectories", Trajectory).records.items():
            row = rows.get(key)
            yield SampleView(
                trajectory=trajectory,
                verdict=verdicts.get(key),
                why=_why(trajectory, kept, reasons, control=path.name.endswith(CONTROL) and sampled.parent != path),
                pieces=pieces(row, template) if row is not None and template is not None else (),
            )


def _work(folder: Path) -> Iterator[SampleView]:
    """A folder of trajectories by itself."""
    selection = read_if_there(folder / "selection.json", Selection)
    reasons = {item.key: item.reason for item in selection.left_out} if selection else {}
    kept = set(selection.kept) if selection else set()
    verdicts = Segments(folder / "verdicts", Verdict).records
    for key, trajectory in Segments(folder / "trajectories", Trajectory).records.items():
        why = _why(trajectory, kept, reasons, control=False) if selection else "nothing has been selected here yet"
        yield SampleView(trajectory=trajectory, verdict=verdicts.get(key), why=why, pieces=())


def _why(trajectory: Trajectory, kept: set[SampleKey], reasons: dict[SampleKey, str], *, control: bool) -> str:
    key = trajectory.key
    if key in kept and control and key.sampling != RECORDED:
        return "drawn for the control: its verdict was ignored"
    if key in kept and trajectory.hint is not None:
        return "kept: it passed with the reference shown, which no row holds, and nothing had passed without"
    if key in kept:
        return "kept: it passed, within the cap, no duplicate"
    return f"left out: {reasons[key]}" if key in reasons else "evaluation only: never trains"


def _rows(path: Path) -> Iterator[Row]:
    file = path / "training_set" / "rows.jsonl"
    decode = msgspec.json.Decoder(Row).decode
    for line in file.read_bytes().splitlines() if file.exists() else ():
        yield decode(line)


def _template(folder: Path) -> Any:
    """The template of any model the run trained (all share the base's), or None where it is gone: then nothing is marked."""
    for path in sorted(folder.glob("rungs/*/model")):
        try:
            return load_template(load_model(str(path)))
        except SharpenError:
            continue
    return None


def _banners(notes: list[dict[str, Any]], rungs: list[RungView]) -> Iterator[str]:
    yield from dict.fromkeys(banner for rung in rungs if rung.decision for banner in rung.decision.banners)
    opened = {note["agent"] for note in notes if note.get("event") == "test opened"}
    if len(opened) > 2:
        yield f"the test split was opened for {len(opened)} different models: its numbers are no longer those of a split seen once"


def _ledger(folder: Path) -> list[dict[str, Any]]:
    from sharpen.store.run import Run

    return Run(folder).ledger() if (folder / LEDGER).exists() else []
