"""The steps of a ladder one by one, each on files: ``import``, ``sample``, ``verify``, ``select``, ``train``, ``eval``, ``export``.

A work folder holds what a stage of a run holds, under the same names: ``trajectories/``, ``verdicts/``, ``selection.json``,
``training_set/rows.jsonl``. So each verb works on a folder that another verb, an import or a run left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec.structs import replace

from sharpen import loop
from sharpen.advisor import unaudited
from sharpen.agents.choose import CONSIDERED, check_turns, load_members, make_agent, make_several, most_turns, playing
from sharpen.audit import AUDIT, TASKS, audit, tries_in
from sharpen.budget import Adaptive, terms
from sharpen.chat.load import load_template
from sharpen.errors import FormatError, Refused, RunError, TaskError, nearest
from sharpen.evaluation import EvaluationSettings, evaluate
from sharpen.formats.base import MAX_BYTES, Exported, Imported
from sharpen.formats.load import FORMATS, read, write
from sharpen.labels import content, measure, read_labels
from sharpen.methods.base import heard, inherit, required, write_rows
from sharpen.models import check_adapter, export_model, load_model, open_folder
from sharpen.policies.base import Policy
from sharpen.policies.choose import open_policy
from sharpen.policies.meter import SPENT, Meter, Metered
from sharpen.policies.prices import price_of
from sharpen.records import Audit, Evaluation, LeftOut, Maker, Model, SampleKey, Selection, Task, TrainingReport, Trajectory, Verdict
from sharpen.report.card import model_card
from sharpen.report.page import RungView, RunView
from sharpen.report.read import read_run
from sharpen.sampling import WAVES, Goal, Listener, Pool, Progress, SamplingSettings, Tolerance, fill, fill_adaptively, silent
from sharpen.selection import build_rows, merge, select
from sharpen.settings import RunSettings
from sharpen.store.files import digest, read_json, replacing, write_atomic, write_json
from sharpen.store.run import SETTINGS, Run, check_rungs, existing
from sharpen.store.segments import Segments, order
from sharpen.tasks.base import TaskSet
from sharpen.tasks.data_file import OwnData, verifier_of
from sharpen.tasks.load import load_tasks
from sharpen.tasks.recorded import Finder, opening
from sharpen.terms import TermsSettings, brought, gate, merged, settle, whose, with_terms, written
from sharpen.training.load import trainer_for
from sharpen.verifiers.base import asking, charge, close, risks, stands
from sharpen.verifiers.remembered import OPINIONS, remembered
from sharpen.verifiers.run import judge_many


@dataclass(frozen=True)
class Watcher:
    """Who sees a verb work: ``listen`` hears of progress, ``say`` of what happens, and ``asked`` tells why nothing more shall be begun, "" while it may."""

    listen: Listener = silent
    say: Callable[[str], None] = lambda line: None
    asked: Callable[[], str] = lambda: ""


UNWATCHED = Watcher()


def import_(
    source: Path,
    work: Path,
    *,
    format: str | None = None,
    strict: bool = True,
    max_bytes: int = MAX_BYTES,
    settings: RunSettings | None = None,
    terms: Sequence[TermsSettings] = (),
) -> Imported:
    """Bring the trajectories of a file, or of all files in a folder, into ``work``; one at a time, so that the file may be larger than memory.

    With ``settings`` each is put under the task that asks the same question, so that it can be verified; TaskError where none does. ``format``,
    ``strict`` and ``max_bytes`` are those of ``formats.load.read``. ``terms`` settle that whoever made them lets them train; Unsettled where they do not,
    or are another's. Without, they can be judged and shown, and train once settings settle it.
    """
    for one in terms:
        settle(one)
    finder = Finder(load_tasks(settings.tasks).tasks) if settings is not None else None
    reading = read(source, format, strict=strict, max_bytes=max_bytes)
    encode = msgspec.json.Encoder().encode
    with _held(work), replacing(work / "trajectories" / f"{digest(str(source.resolve()))}.jsonl") as file:
        for trajectory in reading:
            if finder is not None:
                if (task := finder.find(trajectory)) is None:
                    asked = " ".join(message.content for message in opening(trajectory))
                    raise TaskError(
                        f"{source} answers {asked[:80]!r}, which no task of the settings asks; leave out --tasks, or add the task"
                    )
                trajectory = replace(trajectory, key=replace(trajectory.key, task=task.key))
            if terms:
                trajectory = brought(trajectory, terms, str(source))
            file.write(encode(trajectory) + b"\n")
    return reading.imported


def export(work: Path, path: Path, format: str) -> Exported:
    """Write what ``work/selection.json`` keeps, or everything where nothing was selected yet, to a file of another library's format.

    Banners on the selection have no place in these formats, so they go into a text file beside it, ``NAME.WARNING.txt``. The terms that ride on it are
    written beside too, to ``NAME.terms.yaml``, which ``sharpen import --terms`` reads.
    """
    if format not in FORMATS:
        raise FormatError(f"unknown format {format!r}{nearest(format, (*FORMATS, *MODEL_FORMATS))}")
    tries, chosen = existing(work), work
    if work.name == "sampling" and (work.parent / "selection.json").exists():
        chosen = work.parent  # a rung of a run keeps its tries below
    elif not (work / "trajectories").exists() and (work / "sampling").is_dir():
        tries = work / "sampling"
    trajectories = _trajectories(tries).records
    selection = _selection(chosen) if (chosen / "selection.json").exists() else None
    keys = selection.kept if selection is not None else tuple(sorted(trajectories, key=order))
    riding: dict[Maker, None] = {}

    def kept() -> Iterator[Trajectory]:
        for key in keys:
            if key in trajectories:
                trajectory = trajectories[key]
                riding.setdefault(whose(trajectory))
                yield trajectory

    done = write(kept(), path, format)
    banners = selection.banners if selection is not None else ()
    warning = _beside(path, "WARNING.txt", "".join(f"{banner}\n" for banner in banners))
    terms = merged(*(maker.terms for maker in riding), selection.terms if selection is not None else ())
    theirs = _beside(path, "terms.yaml", yaml.safe_dump(written(terms), sort_keys=False, allow_unicode=True) if terms else "")
    return replace(done, banners=banners, warning=warning, terms=theirs)


def _beside(path: Path, ending: str, text: str) -> str:
    """The file PATH.ending with ``text``; no file, and "", where there is none, also where an export before left one."""
    beside = path.with_name(f"{path.name}.{ending}")
    if not text:
        beside.unlink(missing_ok=True)
        return ""
    write_atomic(beside, text.encode())
    return str(beside)


MODEL_FORMATS = ("model", "adapter")


def export_weights(source: Path, out: Path, format: str, licence: str = "") -> Model:
    """Export a model with its card into the new folder ``out``: what a run ships, one rung of it, or a model folder.

    ``format`` is ``model`` (merged weights, a plain folder) or ``adapter`` (the LoRA, for PEFT). ``licence`` is what the card says it is under, as the
    hub writes it (``apache-2.0``). ModelError or RunError where there is no model.
    """
    folder, view, rung = _weights(existing(source, "run, rung or model folder").resolve())
    model, adapter = open_folder(folder), format == "adapter"
    if adapter:
        check_adapter(model)
    export_model(model, out, model_card(model, out.resolve().name, view, rung, adapter=adapter, licence=licence), adapter=adapter)
    return model


def _weights(source: Path) -> tuple[Path, RunView | None, RungView | None]:
    """The model folder that ``source`` means, with the run and the rung that it comes from."""
    if (run := _run_of(source)) is None:
        return source, None, None
    if run == source:
        check_rungs(run)
    view = read_run(run, samples=0)
    rung = next((one for one in view.rungs if (one.shipped if run == source else one.name in source.parts)), None)
    if rung is None:
        raise RunError(f"{source} is no rung of {run}, and no run that ships one; name a rung's folder, such as {run}/rungs/002-sft")
    folder = run / "rungs" / rung.name / "model"
    if not folder.is_dir() and rung.training is not None:
        raise RunError(f"the weights of {rung.name}, {folder}, are gone; put them back, or give sharpen run again, which makes them anew")
    if not folder.is_dir():
        raise RunError(f"{rung.name} has no weights of its own: it is a prompt, the base model, or refused; name another rung's folder")
    return folder, view, rung


def sample(settings: RunSettings, work: Path, split: str = "train", *, watch: Watcher = UNWATCHED) -> Pool:
    """``settings.sampling.n`` tries of every task of ``split``, in ``work/trajectories``. Tries that lie there already are not made again.

    An adaptive budget needs verdicts to go by, so it judges as it goes; what it decided lies in ``work/waves.json``.
    """
    return _tries(settings, work, split, settings.sampling, watch, judged=isinstance(settings.sampling.budget, Adaptive))


def verify(settings: RunSettings, work: Path, *, watch: Watcher = UNWATCHED) -> dict[str, int]:
    """Judge every trajectory in ``work`` with the tasks' verifier, also those judged before, unless that asks a policy or a server: then its verdicts
    stand, except errors. Returns how many pass, fail and err.

    TaskError where a trajectory is of no task of the settings; Refused where the tasks have no verifier; TooManyErrors where more than the share
    ``sampling.max_errors`` of the verdicts are errors.
    """
    existing(work)
    tasks = load_tasks(settings.tasks)
    verifier = required(tasks)
    by_key = {task.key: task for task in tasks.tasks}
    with _held(work):
        paid = bool(asking(verifier))
        meter = Meter(settings.spending, work / SPENT, watch.asked) if paid else Meter(asked=watch.asked)
        charge(verifier, meter, "verify")
        trajectories = _trajectories(work)
        verdicts = Segments(work / "verdicts", Verdict)
        _mend(watch.say, trajectories, verdicts)
        counts = dict.fromkeys(("pass", "fail", "error"), 0)
        tolerance = Tolerance("verify", len(trajectories.records), settings.sampling.max_errors)

        done: set[SampleKey] = set()
        for key in trajectories.records if paid else ():
            known = verdicts.records.get(key)
            if stands(known, verifier):
                done.add(key)
                counts[known.outcome] += 1

        def tries() -> Iterator[tuple[Task, Trajectory]]:
            for key, trajectory in trajectories.records.items():
                if key in done:
                    continue
                meter.check()
                if key.task not in by_key:
                    raise TaskError(f"{work} holds a try of task {key.task!r}, which the settings' tasks lack{nearest(key.task, by_key)}")
                yield by_key[key.task], trajectory

        timeout_s, at_once = settings.sampling.verifier_timeout_s, settings.sampling.concurrency
        try:
            for number, (trajectory, verdict) in enumerate(judge_many(tries(), verifier, timeout_s, at_once), 1 + len(done)):
                verdicts.append(verdict)
                counts[verdict.outcome] += 1
                if trajectory.stop != "error":  # which was no fault of the verifier's
                    tolerance.saw(trajectory, verdict)
                watch.listen(
                    Progress(
                        what="verify", done=number, total=len(trajectories.records), passes=counts["pass"], judged=number - counts["error"]
                    )
                )
        finally:
            close(verifier)
            verdicts.close()
            if paid:
                meter.write()
        verdicts.seal(trajectories.records)
    return counts


def select_(settings: RunSettings, work: Path) -> Selection:
    """Choose what trains from the judged tries in ``work``, and write ``selection.json``, with the reason for every try left out.

    Tries of dev and test tasks are left out, whatever they did: what judges must not teach. Where the verifier is not exact and the settings' labels do
    not show that what is kept is pure, the selection, and what is trained on it, carry a banner that says so.
    """
    existing(work)
    tasks = load_tasks(settings.tasks)
    judging = {task.key: task.split for task in tasks.tasks if task.split in ("dev", "test")}
    with _held(work):
        pool = _pool(work)
        aside = tuple(
            LeftOut(key=key, reason=f"of a task in {judging[key.task]}, which judges") for key in pool.wanted if key.task in judging
        )
        teaching = replace_fields(pool, wanted=tuple(key for key in pool.wanted if key.task not in judging))
        chosen = select(teaching, settings.selection, settings.seed)
        chosen = merge([Selection(kept=(), left_out=aside, counts={}), chosen])
        if tasks.verifier is not None and not tasks.verifier.exact:
            kept = {key: content(pool.trajectories[key]) for key in chosen.kept}
            purity = measure(kept, read_labels(settings.labels_place), settings.ladder.purity)
            chosen = replace(chosen, banners=() if purity.outcome == "clears" else (unaudited(tasks.verifier.name),))
        if tasks.verifier is not None:
            chosen = replace(chosen, banners=(*chosen.banners, *risks(tasks.verifier)))
        write_json(work / "selection.json", chosen)
    return chosen


def train(settings: RunSettings, work: Path, out: Path, *, watch: Watcher = UNWATCHED) -> tuple[Model, TrainingReport]:
    """Train the settings' model on what ``work/selection.json`` keeps, into the new folder ``out``. Refused where nothing is left to train on.

    Unsettled where rows are words of someone outside the model's lineage and neither the settings' terms nor those they came with let them train.
    """
    existing(work)
    if out.exists():
        raise RunError(f"{out} exists already; choose another folder with --out")
    with _held(work):
        trajectories = _trajectories(work).records
        selection = _selection(work)
        model = load_model(settings.model, settings.template)
        chosen = [(_source(trajectories[key]), trajectories[key]) for key in selection.kept if key in trajectories]
        rows, proved = build_rows(selection, chosen, load_template(model), settings.training.max_length)
        rows = with_terms(rows, settings.terms)
        write_json(work / "selection.json", replace(proved, terms=gate(rows, model)))
        if not rows:
            raise Refused(
                f"nothing in {work} to train on: {', '.join(f'{n} {reason}' for reason, n in proved.counts.items()) or 'no trajectory'}"
            )
        write_rows(work, rows)
        training = replace(settings.training, seed=settings.training.seed + settings.seed, start="base")
        trained, report = trainer_for(model)(rows, model, training, out, on_progress=heard(watch.listen, "train"))
        return inherit(trained, model, selection.banners), report


def eval_(settings: RunSettings, work: Path, split: str = "dev", *, watch: Watcher = UNWATCHED) -> Evaluation:
    """pass@k of the settings' model on ``split``, with intervals over families; tries, verdicts and ``evaluation.json`` lie in ``work``."""
    tasks = load_tasks(settings.tasks)
    pool = _tries(settings, work, split, settings.evaluation, watch, judged=True, tasks=tasks)
    evaluation = evaluate(pool, tasks.split(split).tasks, settings.model, split, settings.evaluation, settings.seed)
    write_json(work / "evaluation.json", evaluation)
    return evaluation


def audit_(settings: RunSettings, work: Path, *, second: str | None = None, limit: int = TASKS, watch: Watcher = UNWATCHED) -> Audit:
    """What is known of the tasks' verifier, from made-up answers, from the tries in ``work`` (a work folder or a run) and from the settings' labels.

    ``second`` names another verifier to hold it against, as ``tasks.verifier`` does. Written to ``work/audit.json``.
    """
    existing(work)
    tasks = load_tasks(settings.tasks)
    required(tasks)
    other = verifier_of(OwnData(verifier=second)) if second is not None else None
    with _held(work):
        labels = read_labels(settings.labels_place)
        bar, timeout_s = settings.ladder.purity, settings.sampling.verifier_timeout_s
        meter = Meter(settings.spending, work / SPENT, watch.asked)
        paid = [account for one in (tasks.verifier, other) if (account := charge(one, meter, "audit")) is not None]
        try:
            found = audit(tasks, tries_in(work), labels, second=other, limit=limit, bar=bar, timeout_s=timeout_s, opinions=work / OPINIONS)
        finally:
            if paid:
                meter.write()
        if not labels.lines:
            found = replace(
                found, limits=(*found.limits, f"there are no labels in {settings.labels_place}; sharpen label {work} asks for them")
            )
        write_json(work / AUDIT, found)
    return found


def _tries(
    settings: RunSettings,
    work: Path,
    split: str,
    how: SamplingSettings | EvaluationSettings,
    watch: Watcher,
    *,
    judged: bool,
    tasks: TaskSet | None = None,
) -> Pool:
    tasks = tasks or load_tasks(settings.tasks)
    chosen: tuple[Task, ...] = tasks.split(split).tasks
    if not chosen:
        raise TaskError(f"task set {tasks.name!r} has no tasks in the split {split!r}; give tasks.splits.{split} some families")
    several = playing(settings.agent, "sampling" if isinstance(how, SamplingSettings) else "evaluation")
    verifier = required(tasks) if judged else None
    chooses = tasks.verifier
    if several is not None and several.by == "verifier" and chooses is not None:  # it chooses, and then grades what it chose
        chooses = remembered(chooses, work / OPINIONS, content)
        verifier = chooses if judged else None
    budget = how.budget if isinstance(how, SamplingSettings) else None
    if isinstance(budget, Adaptive):
        most = how.max_tokens * most_turns(tasks.environment, settings.harness, several)
        bound = terms(budget, how.n, len(chosen), settings.selection.limit, most)
    with _held(work):
        trajectories, verdicts = Segments(work / "trajectories", Trajectory), Segments(work / "verdicts", Verdict)
        considered = Segments(work / CONSIDERED, Trajectory) if several is not None else None
        _mend(watch.say, trajectories, verdicts, *([considered] if considered is not None else []))
        models = [(load_model(settings.model, settings.template), settings.engine), *load_members(several)]
        patient = settings.sampling.waiting_for(*(engine for _, engine in models))
        limits = patient.limits_of(several.tries if several is not None else 1)
        for _, engine in models:
            check_turns(engine, tasks.environment, settings.harness)
        meter = Meter(settings.spending, work / SPENT, watch.asked)
        account, judging = meter.account(split), charge(chooses if judged or several is not None else None, meter, split)
        policies: list[Policy] = []
        try:
            members = []
            for model, engine in models:
                policies.append(open_policy(model, engine, work if not policies else None)[0])
                price, _ = price_of(model, engine, settings.spending.prices)
                metered = Metered(model.name, partial(policies.__getitem__, len(policies) - 1), account, price)
                members.append(make_agent(model.name, model, metered, tasks.environment, how.turn(settings.seed), settings.harness))
            agent = members[0]
            if several is not None:
                agent = make_several(several, members, chooses, considered, **patient.limits)
            options: dict[str, Any] = {**limits, "what": work.name, "listen": watch.listen, "account": account, "judging": judging}
            if isinstance(budget, Adaptive):
                assert verifier is not None
                goal = Goal(cap=settings.selection.limit, dedup=settings.selection.dedup)
                places = trajectories, verdicts, work / WAVES
                pool = loop.run(fill_adaptively(agent, chosen, budget, bound, goal, settings.seed, verifier, *places, **options))
            else:
                pool = loop.run(fill(agent, chosen, range(how.n), verifier, trajectories, verdicts, **options))
        finally:
            meter.write()
            for policy in policies:
                loop.run(policy.close())
            close(verifier)
            trajectories.close()
            verdicts.close()
            if considered is not None:
                considered.close()
        trajectories.seal(trajectories.records)
        if judged:
            verdicts.seal(verdicts.records)
        if considered is not None and considered.records:
            considered.seal(considered.records)
    return pool


@contextmanager
def _held(work: Path) -> Iterator[None]:
    """Hold the folder: a second process is refused."""
    run = Run.hold(work)
    try:
        yield
    finally:
        run.close()


def _mend(say: Callable[[str], None], *places: Segments[Any]) -> None:
    for place in places:
        if said := place.mend():
            say(said)


def _run_of(folder: Path) -> Path | None:
    """The run that ``folder`` is, or is a part of."""
    return next((path for path in (folder, *folder.parents) if (path / SETTINGS).exists() and (path / "rungs").is_dir()), None)


def _trajectories(work: Path) -> Segments[Trajectory]:
    found = Segments(work / "trajectories", Trajectory)
    if not found.records:
        run = _run_of(work)
        if run is not None and (places := [*run.glob("*/trajectories"), *run.glob("rungs/*/sampling/trajectories")]):
            stages = ", ".join(str(path.parent) for path in sorted(places))
            raise RunError(f"{work} is a run, or a part of one, and holds no trajectories itself; name one of {stages}")
        raise RunError(f"{work} holds no trajectories; make some with sharpen sample, or bring some with sharpen import")
    return found


def _pool(work: Path) -> Pool:
    """Everything in the folder as one pool. RunError where something has not been judged."""
    trajectories = _trajectories(work).records
    verdicts = Segments(work / "verdicts", Verdict).records
    if missing := [key for key in trajectories if key not in verdicts]:
        raise RunError(f"{len(missing)} of {len(trajectories)} trajectories in {work} are not judged; run sharpen verify first")
    keys = tuple(sorted(trajectories, key=order))
    return Pool({key.task: Task(key=key.task, family=key.task) for key in keys}, keys, trajectories, verdicts)


def _source(trajectory: Trajectory) -> str:
    """Text that nobody here sampled is a demonstration."""
    return "sampled" if trajectory.turns else "demonstration"


def _selection(work: Path) -> Selection:
    path = work / "selection.json"
    try:
        return read_json(path, Selection)
    except FileNotFoundError:
        raise RunError(f"{work} has no selection.json; run sharpen select first") from None
    except msgspec.MsgspecError as error:
        raise RunError(f"{path} cannot be read ({error}); run sharpen select again") from error
