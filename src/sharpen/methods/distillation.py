"""Distillation: copy what a stronger agent does. This file is the algorithm.

Measure the teacher on the tasks that decide; where it has nothing that the student lacks, there is nothing to copy. Then one of two ways.
``trajectories``: the teacher plays the training tasks, what the verifier passes is kept, and the student imitates it, the demonstrations mixed back in.
``on_policy``: the student plays, and the teacher says of every token how likely it would have been. Beside the first stands, of another lineage's
teacher, a self-trained control: the student's own passing tries of the same tasks, as many trained tokens, so that what came from the teacher can be told.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from sharpen.agents.teacher import Teacher
from sharpen.budget import Uniform
from sharpen.chat.base import Template
from sharpen.chat.load import load_template
from sharpen.chat.masks import without_ids
from sharpen.errors import EnvironmentFault, ModelError, PolicyError, Refused
from sharpen.evaluation import evaluate
from sharpen.methods.base import Attempt, Bench, Cast, Distillation, Prompted, Sourced
from sharpen.methods.rejection_sampling import Gathered, as_set, gather, keep
from sharpen.methods.sft import demonstrations
from sharpen.policies.meter import total
from sharpen.records import Distilled, Evaluation, Spent, Teaching, Trajectory, Worked
from sharpen.sampling import Pool
from sharpen.selection import among, build_rows, merge
from sharpen.stats import paired_gain, ratio_of_means, share_of_gain
from sharpen.store.files import read_if_there, read_json, write_json
from sharpen.store.run import MANIFEST, Manifest
from sharpen.store.rungs import CONTROL
from sharpen.training.on_policy import INSTEAD, fit, openings

UNTAUGHT = "of a task on which nothing of the teacher's is kept"


def distillation(
    bench: Bench,
    rung: str,
    standing: Prompted,
    earlier: Sequence[Sourced] = (),
    found: Gathered | None = None,
    *,
    control: bool = False,
) -> Attempt:
    """Copy the bench's teacher into the base over everything (``training.start: base``), or into the ``standing`` model (``current``).

    ``earlier`` are survivors of rungs before, mixed back in where training starts from the base. ``found`` is what ``gather_taught`` gave for it, where
    that was looked at before.
    """
    if bench.distillation.way == "on_policy":
        return _on_policy(bench, rung, standing, found)
    found = found or gather_taught(bench, rung, standing, earlier)
    how, template = as_set(bench), load_template(bench.base)
    shown, demos = demonstrations(bench, bench.demonstrations())
    start, mixed = how.begins(bench, standing), [*demos, *how.mixed_back(earlier)]

    def imitate(name: str, of: Gathered, teacher: str = "", token_budget: int | None = None) -> Attempt:
        trains = (*mixed, *of.survivors)
        rows, selection = build_rows(merge([shown, of.selection]), trains, template, bench.training.max_length)
        if (kept := set(of.selection.kept)) and not kept & set(selection.kept):
            why = ", ".join(sorted({item.reason for item in selection.left_out if item.key in kept}))
            raise Refused(f"none of the {len(kept)} tries that are kept can be a row of the student's: {why}")
        model, report = bench.train(name, start, rows, selection, token_budget=token_budget, teacher=teacher)
        return Attempt(Prompted(model), selection, report, of.pool, survivors=of.survivors, trains=trains)

    if bench.teacher is not None and not bench.teacher.itself:  # else it read what the student will read
        found = replace(found, survivors=tuple((source, as_read(one, template)) for source, one in found.survivors))
    attempt = imitate(rung, found, title(*bench.teacher_of(standing)))
    if not control or attempt.training is None:
        return attempt
    uniform = replace(how, sampling=msgspec.structs.replace(bench.sampling, budget=Uniform()))
    own = gather(bench, f"{rung}{CONTROL}", standing, earlier, uniform)
    mine = among(own.selection, {key.task for key in found.selection.kept}, UNTAUGHT)
    if not mine.kept:
        bench.say(f"{rung.removeprefix('rungs/')}: no control, since the student passes none of the tasks that it was taught")
        return attempt
    beside = replace(own, selection=mine, survivors=tuple(one for one in own.survivors if one[1].key in set(mine.kept)))
    return replace(attempt, control=imitate(f"{rung}{CONTROL}", beside, token_budget=attempt.training.trained_tokens))


def uncontrolled(teacher: Teacher | None, how: Distillation) -> str:
    """Why a student that was trained on its own passing tries would be no control beside the one that was taught; "" where it is one."""
    if teacher is not None and teacher.itself:
        return "the teacher's words are the student's own"
    return "there is no verdict in on_policy that its own tries could be kept by" if how.way == "on_policy" else ""


def gather_taught(bench: Bench, rung: str, standing: Prompted, earlier: Sequence[Sourced] = ()) -> Gathered:
    """The teacher's judged tries of every training task, and what is kept of them beside ``earlier`` survivors; in ``on_policy`` one a task, beside none."""
    pool = _teach(bench, rung, standing)
    if bench.distillation.way == "on_policy":
        return keep(bench, pool, standing, (), "taught", msgspec.structs.replace(bench.selection, weighting="log_pass_rate"))
    return keep(bench, pool, standing, earlier, "taught")


def _teach(bench: Bench, rung: str, standing: Prompted) -> Pool:
    teacher, cast = bench.teacher_of(standing)
    return bench.sample(f"{rung}/sampling", teacher, bench.tasks.split("train").tasks, bench.teaching, cast=cast)


def copies_tries(how: Distillation) -> bool:
    """Whether tries of the teacher train at all: in ``on_policy`` only where it is not the student alone that answers."""
    return how.way == "trajectories" or how.on_policy.lmbda < 1


def as_read(trajectory: Trajectory, template: Template) -> Trajectory:
    """``trajectory`` with its token ids where the student would have read the same ids before the first of them, else as text alone.

    A teacher with the student's tokenizer and another chat template samples ids that read well and follow prompts that the student never sees.
    """
    if not trajectory.turns:
        return trajectory
    answers = [at for at, message in enumerate(trajectory.messages) if message.role == "assistant"]
    opening = trajectory.messages[: answers[-len(trajectory.turns)]] if len(answers) >= len(trajectory.turns) else ()
    try:
        asked = tuple(template.prompt(opening, (), trajectory.tools)) if opening else None
    except ModelError:
        asked = None
    return trajectory if asked is not None and asked == trajectory.turns[0].prompt else without_ids(trajectory)


def _on_policy(bench: Bench, rung: str, standing: Prompted, found: Gathered | None) -> Attempt:
    """The student samples, and one model whose weights are here scores its tokens. See ``check_way``."""
    teacher, _ = bench.teacher_of(standing)
    check_way(bench, standing)
    prompts = openings(bench.tasks.split("train"))
    if copies_tries(bench.distillation):
        found = found or gather_taught(bench, rung, standing)
        said = {key.task: one.messages[-1].content for key, one in found.tries.items()}
        prompts = tuple(msgspec.structs.replace(prompt, answer=said.get(prompt.key, "")) for prompt in prompts)
    model, report = bench.train_on_policy(rung, as_set(bench).begins(bench, standing), teacher.model, prompts)
    return Attempt(Prompted(model), training=report)


def is_student(bench: Bench, standing: Prompted) -> bool:
    """Whether the teacher is the student as it stands: the same weights, tokenizer and prompt, at play in the same way, with as much room to answer."""
    teacher, cast = bench.teacher_of(standing)
    own, settings = bench.cast(bench.evaluation), bench.evaluation
    return teacher.fingerprint == standing.fingerprint and cast.identity == own.identity and bench.as_taught(settings) == settings


def check_way(bench: Bench, standing: Prompted) -> None:
    """Refused where this teacher has nothing for this student, or ``on_policy`` cannot do it with them or the tasks (``training.on_policy.fit``): told
    before the teacher is asked anything."""
    teacher, cast = bench.teacher_of(standing)
    if is_student(bench, standing):
        raise Refused(
            f"the teacher {teacher.name} is the student itself (weights {teacher.model.fingerprint[:12]}), one try for one: no behaviour, nothing to copy; "
            "name a stronger teacher, or one that chooses among several tries: best-of-8"
        )
    if bench.distillation.way != "on_policy":
        return
    other = (
        "recorded" if cast.recorded else "a choice among several tries" if cast.several else "an outside program" if cast.harness else ""
    )
    if other:
        raise Refused(
            f"on_policy asks for the teacher's probability of every token of the student, and {teacher.name} is {other}, which has none; {INSTEAD}"
        )
    prompts = openings(bench.tasks.split("train"))
    if bench.distillation.on_policy.lmbda == 1:  # else it is told once the teacher has answered
        fit(as_set(bench).begins(bench, standing), teacher.model, prompts, bench.distillation.on_policy, bench.training)


# ---------------------------------------------------------------- what the teacher has


@dataclass(frozen=True)
class Measured:
    """A teacher's tries at the dev tasks, and what they come to."""

    name: str
    pool: Pool
    evaluation: Evaluation


def measure_teacher(bench: Bench, rung: str, standing: Prompted) -> Measured:
    """The teacher at the dev tasks, as often as the student is at its first look; ``teacher.json`` in the rung's folder. See ``ask_teacher``."""
    name, pool = ask_teacher(bench, rung, standing)
    evaluation = evaluate(pool, tuple(pool.tasks.values()), name, "dev", bench.as_taught(bench.evaluation), bench.seed)
    write_json(bench.run.folder / rung / "teacher.json", evaluation)
    return Measured(name, pool, evaluation)


def ask_teacher(bench: Bench, rung: str, standing: Prompted, first: int | None = None) -> tuple[str, Pool]:
    """What the teacher is called, and its tries at the dev tasks, or the ``first`` of them. PolicyError, naming the teacher, where it does not answer."""
    agent, cast = bench.teacher_of(standing)
    tasks, settings = bench.tasks.split("dev").tasks, bench.as_taught(bench.evaluation)
    try:
        return title(agent, cast), bench.sample(f"{rung}/teacher/dev", agent, tasks, settings, cast=cast, first=first)
    except PolicyError as error:
        raise PolicyError(f"the teacher {agent.name} does not answer: {error}", error.failure) from error
    except EnvironmentFault as error:
        raise EnvironmentFault(f"the teacher {agent.name} cannot play: {error}") from error


def title(agent: Prompted, cast: Cast) -> str:
    """What a teacher is called."""
    models = " + ".join((agent.name, *(model.name for model, _ in cast.others)))
    program = f" in {Path(cast.harness.command[0]).name}" if cast.harness is not None else ""
    return f"{models}{program}" + (f", best of {cast.several.tries}" if cast.several is not None and cast.several.tries > 1 else "")


def teaching(measured: Measured, student: Evaluation, base: str, seed: int) -> Teaching:
    """What the teacher has that the student lacks, by the tasks that both were measured on."""
    theirs = {result.task: result for result in measured.evaluation.tasks}
    lacks = [
        one for one in student.tasks if one.samples > one.errors and not one.passes and theirs[one.task].samples > theirs[one.task].errors
    ]
    gap = paired_gain(student.tasks, measured.evaluation.tasks, 0.95, seed, (base, measured.name))
    tries = [measured.pool.trajectories[key] for key in measured.pool.wanted]
    return Teaching(
        teacher=measured.name,
        teacher_rate=measured.evaluation.pass_at[1],
        student_rate=student.pass_at[1],
        gap=gap,
        student_tries=max((one.samples for one in student.tasks), default=0),
        lacks=len(lacks),
        solves=sum(theirs[one.task].passes > 0 for one in lacks),
        tries=len(tries),
        silent=sum(
            not any(message.role == "assistant" and (message.content.strip() or message.tool_calls) for message in one.messages)
            for one in tries
        ),
    )


def check_tools(bench: Bench, rung: str, standing: Prompted, student: Pool) -> None:
    """Refused where the teacher is a program that tells of other tools than the ``student`` has: one try is asked of it, before all the others are.

    Any other live teacher plays where the student does, with the tools that are there; of recorded ones all tries are there already.
    """
    _, cast = bench.teacher_of(standing)
    if cast.harness is not None and cast.harness != bench.harness:
        same_tools(*ask_teacher(bench, rung, standing, first=1), student)


def same_tools(name: str, teacher: Pool, student: Pool) -> None:
    """Refused where the teacher ``name`` works with other tools than the student: what it does with them is nothing to copy. See ``other_tools``."""
    if strange := other_tools(teacher, student):
        raise Refused(
            f"the teacher {name} works with other tools than the student: {strange}; give both the same tools, or let it play in the "
            "student's environment (of recorded trajectories: replay: true)"
        )


def other_tools(teacher: Pool, student: Pool) -> str:
    """What tools the teacher worked with that the student does not have, or has otherwise, in words; "" where all are the student's own."""
    ours, theirs = _tools(student), _tools(teacher)
    if strange := sorted(theirs.keys() - ours.keys()):
        return f"{', '.join(strange)}, which the student {'has not' if ours else 'has not, nor any other'}"
    if changed := sorted(name for name, takes in theirs.items() if takes is not None and ours[name] is not None and takes != ours[name]):
        return f"{', '.join(changed)}, which take other arguments than the student's"
    return ""


def _tools(pool: Pool) -> dict[str, object]:
    """What each tool takes, by name, as the tries were told; of tries that were told of none, those that they called (None)."""
    found: dict[str, object] = {}
    for key in pool.wanted:
        one = pool.trajectories[key]
        for tool in one.tools:
            described = tool.get("function", tool)
            found[described["name"]] = described.get("parameters")
        if not one.tools:
            called = (call.name for message in one.messages for call in message.tool_calls)
            found |= {name: None for name in called if name not in found}
    return found


# ---------------------------------------------------------------- what became of it


def exchange(
    bench: Bench, rung: str, measured: Measured, before: tuple[str, Prompted, Evaluation], after: tuple[Prompted, Evaluation]
) -> Distilled:
    """Teacher, student before and student after on the same dev tasks: what each brings, and takes. Written to ``distillation.json``."""
    name, old, first = before
    new, now = after
    pool = bench.tries(rung, new, "dev", max(one.samples for one in now.tasks))
    folder = bench.run.folder
    sampling = read_if_there(folder / rung / "sampling" / MANIFEST, Manifest)
    made = Distilled(
        teacher=_worked(measured.name, measured.evaluation, measured.pool, [folder / rung / "teacher" / "dev" / MANIFEST]),
        before=_worked(
            old.name,
            first,
            bench.tries(name, old, "dev", max(one.samples for one in first.tasks)),
            (folder / name).glob(f"dev*/{MANIFEST}"),
        ),
        after=_worked(new.name, now, pool, (folder / rung).glob(f"dev*/{MANIFEST}")),
        gap=paired_gain(first.tasks, measured.evaluation.tasks, 0.95, bench.seed, (name, measured.name)),
        gained=paired_gain(first.tasks, now.tasks, 0.95, bench.seed, (name, rung)),
        over=paired_gain(measured.evaluation.tasks, now.tasks, 0.95, bench.seed, (measured.name, rung)),
        kept=share_of_gain(first.tasks, measured.evaluation.tasks, now.tasks),
        tokens=ratio_of_means(_both(_tokens(measured.pool), _tokens(pool), pool)),
        teaching=sampling.spent if sampling is not None else Spent(),
    )
    write_json(folder / rung / "distillation.json", made)
    return made


def _worked(who: str, evaluation: Evaluation, pool: Pool, stages: Iterable[Path]) -> Worked:
    manifests = [read_json(path, Manifest) for path in stages]
    costs = [pool.trajectories[key].cost for key in pool.wanted]
    each = 1 / len(costs) if costs else math.nan
    spent, busy = total(*(one.spent for one in manifests)), sum(one.inside_s for one in manifests)
    return Worked(
        who=who,
        rate=evaluation.pass_at[1],
        tries=len(costs),
        turns=each * sum(cost.turns for cost in costs),
        prompt_tokens=each * sum(cost.prompt_tokens for cost in costs),
        sampled_tokens=each * sum(cost.sampled_tokens for cost in costs),
        seconds=each * busy if busy else math.nan,
        dollars=math.nan if spent.unpriced else each * spent.dollars,
    )


def _tokens(pool: Pool) -> dict[str, float]:
    """Tokens of one try, prompts included, for each task: the mean over its tries."""
    found = defaultdict(list)
    for key in pool.wanted:
        if (one := pool.trajectories[key]).stop != "error":
            found[key.task].append(one.cost.prompt_tokens + one.cost.sampled_tokens)
    return {task: sum(counts) / len(counts) for task, counts in found.items()}


def _both(x: Mapping[str, float], y: Mapping[str, float], pool: Pool) -> dict[str, list[tuple[float, float]]]:
    pairs = defaultdict(list)
    for task in x.keys() & y.keys():
        pairs[pool.tasks[task].family].append((x[task], y[task]))
    return dict(sorted(pairs.items()))
