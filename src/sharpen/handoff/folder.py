"""The hand-over: ``rl/`` in a run's folder, with everything that RL needs from there. It reads a run and trains nothing.

    rl/README.md             whether RL is justified, with the numbers, and what is here
    rl/handoff.json          all of it for programs
    rl/model.json            the model to start from: where it lies, its fingerprint, why this one
    rl/verifier.json         the verifier and what is known of it
    rl/tasks/                solved.jsonl, mixed.jsonl (RL's food), never-solved.jsonl, unmeasured.jsonl, and dev.jsonl, which must not train
    rl/train_grpo.py         GRPO with TRL, as it stands
    rl/taskset/              the same tasks for the package verifiers

``out/`` is the script's own, and stays when the hand-over is written again. A file that was changed by hand is never overwritten.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec.structs import replace

from sharpen import advisor, loop
from sharpen.advisor import purity_line
from sharpen.agents.base import with_shots
from sharpen.audit import AUDIT
from sharpen.budget import Uniform
from sharpen.errors import ModelError, RunError, SharpenError, Stopped
from sharpen.handoff.justify import Headroom, Justification, justify
from sharpen.measurements import Found, as_last_wanted, measured, open_bench
from sharpen.methods.base import Prompted, required
from sharpen.models import load_model, open_folder
from sharpen.records import (
    Audit,
    Evaluation,
    Interval,
    Message,
    Model,
    Option,
    Purity,
    Record,
    SampleKey,
    Task,
    TaskResult,
    Trajectory,
    Verdict,
)
from sharpen.report.live import Live
from sharpen.report.page import RungView, rate
from sharpen.report.read import read_run
from sharpen.sampling import WAVES, Waves
from sharpen.settings import RunSettings
from sharpen.stats import clopper_pearson, cluster_bootstrap_mean, pass_at_k, pass_interval
from sharpen.store.files import as_json, file_digest, read_if_there, read_json, write_atomic, write_json, writing
from sharpen.store.run import MANIFEST, Manifest, Run, check_rungs
from sharpen.store.segments import Segments, order
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks

FOLDER = "rl"
HANDOFF = "handoff.json"
WRITTEN = ".written.json"  # the sha256 of every file that a hand-over wrote here, so that one changed by hand is told from it
Kind = Literal["solved", "mixed", "never-solved", "unmeasured"]
KINDS: tuple[Kind, ...] = ("solved", "mixed", "never-solved", "unmeasured")
_HERE = Path(__file__).parent / "emitted"


class Counted(Record, frozen=True, kw_only=True):
    """A line of ``rl/tasks/*.jsonl``: a task and how often it was solved.

    ``passes`` of ``tries`` are of tries fixed beforehand, without the ``errors``; ``later`` are passes that an adaptive budget's later waves found.
    ``at_most`` bounds the pass rate from above (Clopper-Pearson, one-sided, 95 %, for a task without a success over all tries there were); ``graded``: its
    score differs between tries, though none passed. ``prompt`` is how it opened in those tries, without few-shot examples; of a task that was not tried,
    its own prompt, empty where only its environment knows. ``params`` is what the environment is made from, ``gold`` in it a solution that came with the task.
    """

    task: str
    family: str
    split: str
    kind: Kind
    tries: int = 0
    passes: int = 0
    errors: int = 0
    later: int = 0
    at_most: float = 1.0
    graded: bool = False
    prompt: tuple[Message, ...] = ()
    reference: Any = None
    params: dict[str, Any] = {}


class Candidate(Record, frozen=True, kw_only=True):
    """A rung that RL could start from, with its pass@k on dev. ``over_shipped`` is the paired difference to the rung that ships."""

    rung: str
    model: str
    pass_k: Interval
    pass_1: Interval
    over_shipped: Interval


class Start(Record, frozen=True, kw_only=True):
    """``model.json``: what RL starts from. ``path`` is relative to the run's folder where it lies in it. ``shots`` go before every task."""

    rung: str
    model: Model
    path: str
    shots: tuple[Message, ...]
    k: int
    candidates: tuple[Candidate, ...]
    why: str


class Vouched(Record, frozen=True, kw_only=True):
    """``verifier.json``: the verifier, and what is known of it. ``audit`` is what sharpen audit found, ``purity`` that of the last round's rows."""

    name: str
    exact: bool
    says: str
    audit: Audit | None
    purity: Purity | None
    banners: tuple[str, ...] = ()


class Handoff(Record, frozen=True, kw_only=True):
    """``handoff.json``. ``project`` leads from the run's folder to the one that its settings' paths are relative to."""

    run: str
    project: str
    start: Start
    verifier: Vouched
    headroom: Headroom
    justification: Justification
    tasks: dict[str, int]
    limits: tuple[str, ...]


@dataclass(frozen=True)
class _Measured:
    """Tries of train tasks. ``by`` names the rung whose model made them, "" where it is the chosen one; ``shots`` went before every task, None: not known."""

    rung: str
    by: str
    shots: tuple[Message, ...] | None
    trajectories: Mapping[SampleKey, Trajectory]
    verdicts: Mapping[SampleKey, Verdict]
    first: int | None
    """How many tries of a task were fixed beforehand; None for all of them."""
    manifest: Manifest

    @classmethod
    def read(cls, place: Path, rung: str, by: str, shots: tuple[Message, ...] | None, manifest: Manifest) -> _Measured:
        """What lies in the stage ``place``."""
        tries, verdicts = Segments(place / "trajectories", Trajectory).records, Segments(place / "verdicts", Verdict).records
        waves = read_if_there(place / WAVES, Waves)
        return cls(rung, by, shots, tries, verdicts, waves.budget.first if waves is not None else None, manifest)

    @cached_property
    def tries(self) -> dict[str, list[SampleKey]]:
        """The tries of each task, in order."""
        by_task: dict[str, list[SampleKey]] = defaultdict(list)
        for key in sorted(self.verdicts, key=order):
            by_task[key.task].append(key)
        return by_task


def hand_over(folder: Path, tasks: TaskSet | None = None, *, measure: bool = False) -> Handoff:
    """Write ``rl/`` into the run in ``folder``. What lies there under other names stays. ``tasks`` saves loading the run's own again.

    ``measure`` first makes ``sampling.n`` tries of every train task by the model that is handed over, as RL will play them: single ones, in the tasks' own
    environment, without waves. Where the run has such tries of it, none are made.
    RunError where there is no run, another process works on it, or none of its rungs has been evaluated. Stopped where ``measure`` reaches a cap.
    """
    view = read_run(folder, samples=0)
    folder = folder.resolve()
    check_rungs(folder)
    run = Run.hold(folder)
    try:
        settings = as_last_wanted(run)
        tasks = tasks or load_tasks(settings.tasks, settings.demonstrations)
        limits: list[str] = []
        proposals = _proposals(folder, settings, view.rungs, limits)
        evaluated = [rung for rung in view.rungs if rung.name in proposals and rung.dev is not None]
        if not evaluated:
            raise RunError(f"no rung of {folder} has been evaluated, so there is no model to hand over; let sharpen run go on first")
        if missing := [m for m in dict.fromkeys(settings.ladder.rungs) if m.replace("-", " ") not in {rung.method for rung in view.rungs}]:
            limits.append(f"the run has not ended; still to try: {', '.join(missing)}")
        chosen, candidates, k = choose(evaluated, settings.seed)
        model = proposals[chosen.name]
        if any(rung.dev is not None and rung.dev.played for rung in evaluated):
            assert chosen.dev is not None
            limits.append(f"{chosen.dev.played}: its rates are not those of single tries of the model, which is what RL trains")
        if settings.harness is not None:
            limits.append(
                "the tasks are played by an outside program, which writes its own prompts: the script and the taskset play them without it"
            )
        start = Start(
            rung=chosen.name,
            model=model.model,
            path=_from(folder, Path(model.model.path)),
            shots=model.shots,
            k=k,
            candidates=candidates,
            why=_why(chosen.name, candidates, k),
        )
        own = f"{FOLDER}/{chosen.name}/sampling"
        made = _of(folder / own, model) or _measured(folder, view.rungs, model, proposals)
        single = settings.agent is None and settings.harness is None
        if measure and (made is None or made.by or not (single or made.rung == FOLDER)):
            _measure(run, settings, tasks, model, own)
            made = _of(folder / own, model)
        counted = [_counted(task, made) for task in tasks.split("train").tasks]
        verifier = _vouched(folder, tasks, view.rungs, view.banners)
        assert chosen.dev is not None
        headroom = _headroom(chosen.dev, k, settings, counted, made, verifier)
        if made is not None and made.by:
            limits.append(
                f"the tasks are split by tries of {made.by}, made in {made.rung}: the model of {chosen.name} has made none at them; "
                "sharpen handoff --measure makes them"
            )
        if made is None:
            limits.append("no model has made tries at the train tasks, so none is known to be mixed; sharpen handoff --measure makes them")
        handoff = Handoff(
            run=view.name,
            project=os.path.relpath(Path.cwd(), folder),
            start=start,
            verifier=verifier,
            headroom=headroom,
            justification=justify(_of_rl(run, settings, tasks), headroom),
            tasks={kind: sum(line.kind == kind for line in counted) for kind in KINDS},
            limits=tuple(limits),
        )
        dev = _dev_lines(folder, chosen, tasks)
        _write(folder / FOLDER, handoff, counted, dev)
    finally:
        run.close()
    return handoff


def _of_rl(run: Run, settings: RunSettings, tasks: TaskSet) -> Option:
    """What the advisor says of RL from what stands: the same as ``sharpen advise``. Nothing is bought for it."""
    with open_bench(settings, run, tasks, load_model(settings.model, settings.template)) as bench:
        seen = measured(bench, settings, Found.of(run.folder, settings))
    said = advisor.choose(seen, settings.advice, settings.ladder.delta)
    return next(option for option in said.options if option.action == "rl")


# ---------------------------------------------------------------- which model


def choose(rungs: Sequence[RungView], seed: int) -> tuple[RungView, tuple[Candidate, ...], int]:
    """The rung with the highest pass@k where that is surely over that of the rung that ships (95 %, paired), else the one that ships.

    k is the largest that all were evaluated at. Not by pass@1 or training loss, which do not tell where RL ends (marin#8876). Rungs that were surely
    worse, or forgot, are left out.
    """
    fit = [rung for rung in rungs if rung.decision is None or rung.decision.outcome != "worse"]
    evaluations = {rung.name: rung.dev for rung in fit if rung.dev is not None}
    k = max(set.intersection(*(set(dev.pass_at) for dev in evaluations.values())))
    shipped = next((rung for rung in fit if rung.shipped), fit[-1])
    candidates = []
    for rung in fit:
        dev, base = evaluations[rung.name], evaluations[shipped.name]
        over = _difference(dev.tasks, base.tasks, k, seed)
        candidates.append(
            Candidate(
                rung=rung.name, model=dev.model, pass_k=pass_interval(dev.tasks, k, 0.95, seed), pass_1=dev.pass_at[1], over_shipped=over
            )
        )
    best = max(candidates, key=lambda one: -math.inf if math.isnan(one.pass_k.value) else one.pass_k.value)
    chosen = best.rung if best.over_shipped.low > 0 else shipped.name
    return next(rung for rung in fit if rung.name == chosen), tuple(candidates), k


def _difference(other: Sequence[TaskResult], base: Sequence[TaskResult], k: int, seed: int) -> Interval:
    """pass@k of ``other`` minus that of ``base``, task by task, by family."""
    before = {result.task: result for result in base}
    by_family: dict[str, list[float]] = defaultdict(list)
    for after in other:
        if (one := before.get(after.task)) is not None and min(one.samples - one.errors, after.samples - after.errors) >= k:
            by_family[after.family].append(
                pass_at_k(after.samples - after.errors, after.passes, k) - pass_at_k(one.samples - one.errors, one.passes, k)
            )
    return cluster_bootstrap_mean(by_family, 0.95, seed, span=(-1.0, 1.0))


def _why(rung: str, candidates: Sequence[Candidate], k: int) -> str:
    chosen = next(one for one in candidates if one.rung == rung)
    best = max(candidates, key=lambda one: -math.inf if math.isnan(one.pass_k.value) else one.pass_k.value)
    said, among = f"{rung}: pass@{k} on dev {rate(chosen.pass_k)}", f"of {len(candidates)} rungs"
    over = best.over_shipped
    difference = f"{100 * over.value:+.1f} [{100 * over.low:+.1f}, {100 * over.high:+.1f}] points"
    if chosen.rung == best.rung and not over.low > 0:
        return f"{said}, the highest {among}, and what the run ships"
    if chosen.rung == best.rung:
        return f"{said}, the highest {among}, surely over what the run ships ({difference})"
    return f"{said}; it is what the run ships, and no rung {among} is surely over it (the highest, {best.rung}: {difference})"


def _proposals(folder: Path, settings: RunSettings, rungs: Sequence[RungView], limits: list[str]) -> dict[str, Prompted]:
    """What each rung proposed: its own weights, or those it stood on with a few-shot prompt. Controls and refused rungs propose nothing.

    RunError where that of the rung that ships is gone.
    """
    standing = Prompted(load_model(settings.model, settings.template))
    found: dict[str, Prompted] = {}
    for rung in rungs:
        if rung.control or rung.decision is None or rung.decision.outcome == "refuse":
            continue
        path = folder / "rungs" / rung.name
        proposal: Prompted | None = standing
        gone = "its few-shot prompt cannot be read back"
        if rung.method == "few shot":
            proposal = _with_prompt(path, folder / "rungs" / rungs[0].name, standing)
        elif rung.method != "base":
            try:
                proposal = Prompted(open_folder(path / "model"))
            except ModelError as error:
                proposal, gone = None, f"its weights are gone ({error})"
        if proposal is None:
            if rung.shipped:
                raise RunError(f"{rung.name}, which the run ships, cannot be handed over: {gone}; sharpen run makes it again")
            limits.append(f"{rung.name}: {gone}, so it was no candidate")
            continue
        found[rung.name] = proposal
        if rung.decision.outcome in ("baseline", "keep"):
            standing = proposal
    return found


def _with_prompt(path: Path, base: Path, standing: Prompted) -> Prompted | None:
    """``standing`` with the examples that the rung in ``path`` put before every task, read from a try, and proved by the rung's manifest."""
    manifest = read_if_there(path / "dev" / MANIFEST, Manifest)
    bare = {key.task: one for key, one in Segments(base / "dev" / "trajectories", Trajectory).records.items() if one.turns}
    for key, one in Segments(path / "dev" / "trajectories", Trajectory).records.items():
        if manifest is None or not one.turns or key.task not in bare:
            continue
        opened = _opening(bare[key.task])
        answers = [at for at, message in enumerate(one.messages) if message.role == "assistant"]
        lead = 1 if opened and opened[0].role == "system" else 0
        shots = one.messages[lead : answers[-len(one.turns)] - (len(opened) - lead)]
        prompted = Prompted(standing.model, shots)
        return prompted if manifest.inputs.get("agent") == prompted.fingerprint else None
    return None


# ---------------------------------------------------------------- which tasks


def _measure(run: Run, settings: RunSettings, tasks: TaskSet, model: Prompted, stage: str) -> None:
    settings = replace(settings, agent=None, harness=None, sampling=replace(settings.sampling, budget=Uniform()))
    base = load_model(settings.model, settings.template)
    with Live() as live, loop.interruptible(live.say) as asked, open_bench(settings, run, tasks, base, live, asked) as bench:
        try:
            bench.sample(stage, model, tasks.split("train").tasks, bench.sampling)
        except Stopped as stopped:
            raise Stopped(f"{stopped} (the caps are those that sharpen run was last given)", asked=stopped.asked) from stopped


def _of(place: Path, model: Prompted) -> _Measured | None:
    """The tries that ``model`` made in the stage ``place`` for the hand-over alone. None where they are not there as they were written, or another's."""
    manifest = read_if_there(place / MANIFEST, Manifest)
    if manifest is None or manifest.inputs.get("agent") != model.fingerprint:
        return None
    if any(not (place / name).exists() or file_digest(place / name) != sha for name, sha in manifest.outputs.items()):
        return None
    return _Measured.read(place, FOLDER, "", model.shots, manifest)


def _measured(folder: Path, rungs: Sequence[RungView], chosen: Prompted, proposals: Mapping[str, Prompted]) -> _Measured | None:
    """The last tries at train tasks that the chosen model made; else the last that any did; None where the run has none."""
    makers = {proposal.fingerprint: (rung, proposal.shots) for rung, proposal in reversed(list(proposals.items()))}
    last: _Measured | None = None
    for rung in reversed(rungs):
        place = folder / "rungs" / rung.name / "sampling"
        if rung.control or rung.method == "distillation" or (manifest := read_if_there(place / MANIFEST, Manifest)) is None:
            continue  # a teacher's tries say nothing of what the model does alone, also where it asks that very model
        if rung.decision is not None and rung.decision.variant == "temperature":
            continue  # RL samples as the settings do
        if manifest.taken and not manifest.sampled_tokens:
            continue  # all its tries were made, and paid, in a round before it
        maker = manifest.inputs.get("agent", "")
        own = maker == chosen.fingerprint
        if last is not None and not own:
            continue
        by, shots = ("", chosen.shots) if own else makers.get(maker, ("another model", None))
        last = _Measured.read(place, rung.name, by, shots, manifest)
        if own:
            return last
    return last


def _counted(task: Task, made: _Measured | None) -> Counted:
    line = Counted(
        task=task.key,
        family=task.family,
        split=task.split,
        kind="unmeasured",
        prompt=task.prompt,
        reference=task.reference,
        params=task.params,
    )
    if made is None:
        return line
    keys = made.tries.get(task.key, [])
    verdicts = [(key, made.verdicts[key]) for key in keys]
    first = [one.outcome for key, one in verdicts if made.first is None or key.index < made.first]
    judged = [one for _, one in verdicts if one.outcome != "error"]
    passes, fails = first.count("pass"), first.count("fail")
    later = sum(one.outcome == "pass" for one in judged) - passes
    if not passes + fails:
        return replace(line, errors=first.count("error"))
    kind: Kind = "mixed" if fails and (passes or later) else "solved" if passes else "never-solved"
    never = kind == "never-solved"
    played = () if made.shots is None else (one for key in keys if (one := made.trajectories[key]).stop != "error")
    opened = next((_opening(one, made.shots or ()) for one in played), task.prompt)
    return replace(
        line,
        kind=kind,
        tries=passes + fails,
        passes=passes,
        errors=first.count("error"),
        later=later,
        at_most=clopper_pearson(passes, len(judged) if never else passes + fails, 0.95, "upper").high,
        graded=never and len({one.score for one in judged}) > 1,
        prompt=opened,
    )


def _opening(trajectory: Trajectory, shots: Sequence[Message] = ()) -> tuple[Message, ...]:
    """How the task opened, without the few-shot examples that went before it."""
    messages, shown = trajectory.messages, len(shots)
    lead = 1 if messages and messages[0].role == "system" else 0
    bare = (*messages[:lead], *messages[lead + shown :])
    answers = [at for at, message in enumerate(bare) if message.role == "assistant"]  # the prompt may hold some, too
    return bare[: answers[-len(trajectory.turns)] if trajectory.turns else answers[0] if answers else len(bare)]


def _dev_lines(folder: Path, rung: RungView, tasks: TaskSet) -> list[Counted]:
    """The dev tasks, by the chosen rung's evaluation. For looking at: what decides must not train."""
    assert rung.dev is not None
    known = {task.key: task for task in tasks.split("dev").tasks}
    lines = []
    for result in rung.dev.tasks:
        tried = result.samples - result.errors
        kind: Kind = "unmeasured" if not tried else "never-solved" if not result.passes else "solved" if result.passes == tried else "mixed"
        task = known.get(result.task)
        lines.append(
            Counted(
                task=result.task,
                family=result.family,
                split="dev",
                kind=kind,
                tries=tried,
                passes=result.passes,
                errors=result.errors,
                at_most=clopper_pearson(result.passes, tried, 0.95, "upper").high if tried else 1.0,
                prompt=task.prompt if task is not None else (),
                reference=task.reference if task is not None else None,
                params=task.params if task is not None else {},
            )
        )
    return lines


# ---------------------------------------------------------------- verifier and numbers


def _vouched(folder: Path, tasks: TaskSet, rungs: Sequence[RungView], banners: Sequence[str]) -> Vouched:
    verifier = required(tasks)
    audit = read_if_there(folder / AUDIT, Audit)
    rounds = [rung.purity for rung in rungs if rung.purity is not None and not rung.control]
    purity = rounds[-1] if rounds else audit.purity if audit is not None else None
    if verifier.exact:
        says = "declared exact: it is what success means in these tasks"
    elif purity is not None:
        says = purity_line(purity)
    else:
        says = "neither exact nor audited: how much of what it passes is truly good is not known"
    return Vouched(name=verifier.name, exact=verifier.exact, says=says, audit=audit, purity=purity, banners=tuple(banners))


def _headroom(
    dev: Evaluation,
    k: int,
    settings: RunSettings,
    counted: Sequence[Counted],
    made: _Measured | None,
    verifier: Vouched,
) -> Headroom:
    gaps: dict[str, list[float]] = defaultdict(list)
    for result in dev.tasks:
        if (tried := result.samples - result.errors) >= k:
            gaps[result.family].append(pass_at_k(tried, result.passes, k) - result.passes / tried)
    number = {kind: sum(line.kind == kind for line in counted) for kind in KINDS}
    if made is not None:
        tries, spent = max(len(made.verdicts) - made.manifest.taken, 1), made.manifest.spent
        cost = {
            "prompt_tokens": spent.prompt_tokens / tries,
            "sampled_tokens": (spent.sampled_tokens or made.manifest.sampled_tokens) / tries,
            "seconds": made.manifest.seconds / tries,
            "dollars": spent.dollars / tries,
        }
    else:
        tries = max(sum(result.samples for result in dev.tasks), 1)
        cost = {"prompt_tokens": dev.cost.prompt_tokens / tries, "sampled_tokens": dev.cost.sampled_tokens / tries}
    return Headroom(
        k=k,
        pass_1=pass_interval(dev.tasks, 1, 0.95, settings.seed),
        pass_k=pass_interval(dev.tasks, k, 0.95, settings.seed),
        gap=cluster_bootstrap_mean(gaps, 0.95, settings.seed, span=(0.0, 1.0)),
        tries=max((line.tries for line in counted), default=0),
        by=made.by if made is not None else "",
        solved=number["solved"],
        mixed=number["mixed"],
        never=number["never-solved"],
        graded=sum(line.graded for line in counted),
        unmeasured=number["unmeasured"],
        bound=max((line.at_most for line in counted if line.kind == "never-solved" and not line.graded), default=0.0),
        verifier=verifier.name,
        exact=verifier.exact,
        purity=verifier.purity,
        **cost,
    )


# ---------------------------------------------------------------- writing


def _write(place: Path, handoff: Handoff, counted: Sequence[Counted], dev: Sequence[Counted]) -> None:
    """Write the folder. RunError, and nothing written, where a file in it was changed by hand."""
    package = re.sub(r"\W+", "_", handoff.run).strip("_").lower() + "_tasks"
    said = {"handoff": handoff, "package": package, "kinds": KINDS, "here": os.path.relpath(place.parent)}
    files = {f"tasks/{kind}.jsonl": _lines(line for line in counted if line.kind == kind) for kind in KINDS}
    files["tasks/dev.jsonl"] = _lines(dev)
    files["model.json"], files["verifier.json"] = as_json(handoff.start), as_json(handoff.verifier)
    files["train_grpo.py"] = (_HERE / "train_grpo.py").read_bytes()
    files[f"taskset/{package}/__init__.py"] = (_HERE / "taskset.py").read_bytes()
    for name, out in {"pyproject.toml.j2": "taskset/pyproject.toml", "README.md.j2": "README.md"}.items():
        files[out] = templates().get_template(name).render(said).encode()
    files[HANDOFF] = as_json(handoff)  # last: what reads the folder begins with it
    known = read_if_there(place / WRITTEN, dict[str, tuple[str, ...]]) or {}
    for name, data in files.items():
        path = place / name
        if path.exists() and path.read_bytes() != data and file_digest(path) not in known.get(name, ()):
            raise RunError(
                f"{path} was changed by hand, and would be overwritten; rename it to keep it, or delete it, and give sharpen handoff again"
            )
    # Before the files themselves: what a kill leaves behind is ours too.
    write_json(place / WRITTEN, {name: tuple(sorted({*known.get(name, ()), sha256(data).hexdigest()})) for name, data in files.items()})
    with writing(place):
        for name, data in files.items():
            path = place / name
            if not data:  # datasets cannot read an empty file
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != data:  # a finished run given again changes nothing
                write_atomic(path, data)


def _lines(records: Iterable[Record]) -> bytes:
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


@cache
def templates() -> Environment:
    """Plain text and Markdown: nothing is escaped. What is said comes from the run's settings and numbers."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=FileSystemLoader(_HERE), undefined=StrictUndefined, **options)
    environment.filters |= {"rate": rate}
    return environment


def _from(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


# ---------------------------------------------------------------- reading it back


@dataclass(frozen=True)
class Given:
    """A hand-over read back: what the emitted script and taskset work with."""

    place: Path
    settings: RunSettings
    tasks: TaskSet
    handoff: Handoff

    @property
    def prompted(self) -> Prompted:
        """The model to start from. RunError where its weights are not those that were handed over."""
        start = self.handoff.start
        path = Path(start.path) if Path(start.path).is_absolute() else self.place.parent / start.path
        model = replace(start.model, path=str(path)) if start.model.kind == "endpoint" else open_folder(path)
        if model.fingerprint != start.model.fingerprint:
            raise RunError(f"the weights in {path} are not those that {self.place} was made for; give sharpen handoff again")
        return Prompted(model, start.shots)

    def lines(self, kinds: Sequence[str]) -> list[Counted]:
        """The tasks of some kinds, or of all train tasks (``all``). RunError for a kind that there is not."""
        if wrong := [kind for kind in kinds if kind not in (*KINDS, "dev", "all")]:
            raise RunError(f"there are no {wrong[0]!r} tasks; there are {', '.join(KINDS)}, dev and all")
        chosen = KINDS if "all" in kinds else kinds
        return [line for kind in chosen for line in _read(self.place / "tasks" / f"{kind}.jsonl")]

    def opening(self, line: Counted) -> tuple[Message, ...]:
        """How a task opens, few-shot examples included."""
        return with_shots(line.prompt, self.handoff.start.shots)


def _read(path: Path) -> Iterator[Counted]:
    """The tasks in a file; none where there is no file."""
    for at, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            yield msgspec.json.decode(line, type=Counted)
        except msgspec.MsgspecError as error:
            raise RunError(
                f"{path}, line {at}, is no task of a hand-over ({error}); mend it, or delete the file and give sharpen handoff again"
            ) from error


def given(place: Path) -> Given:
    """The hand-over in ``place``. The folder that the run was made in becomes the working directory: what the settings name is found from there.

    Where the run has moved without it, the working directory stays. RunError where there is no hand-over.
    """
    place = place.resolve()
    try:
        handoff = read_json(place / HANDOFF, Handoff)
    except (OSError, msgspec.MsgspecError) as error:
        raise RunError(f"{place / HANDOFF} cannot be read ({error}); give sharpen handoff {place.parent}") from error
    project = (place.parent / handoff.project).resolve()
    if project.is_dir():
        os.chdir(project)
    settings = as_last_wanted(Run(place.parent))
    return Given(place, settings, load_tasks(settings.tasks, settings.demonstrations), handoff)


def try_to_hand_over(folder: Path, tasks: TaskSet) -> str:
    """``hand_over`` at the end of a run, in one line; what is wrong with it must not undo the run."""
    try:
        handoff = hand_over(folder, tasks)
    except SharpenError as error:
        return f"rl:    not written: {error}"
    return f"rl:    {folder / FOLDER}: {handoff.justification.outcome}: {handoff.justification.reason}"
