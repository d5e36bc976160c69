"""Measure, do a rung, evaluate, keep or roll back. The only place that iterates, and the only one that decides what stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from sharpen import advisor
from sharpen.audit import check
from sharpen.behaviour import DESCRIBED, FAULTY, FILTERED, compare, describe, faults, kept_out
from sharpen.diversity import WRITTEN, Drops, diversity, off_task
from sharpen.errors import Refused, SettingsError, Unsettled
from sharpen.evaluation import EvaluationSettings, succeeded, weigh
from sharpen.labels import BAR, Labels, content, measure, read_labels, shuffled
from sharpen.methods.base import Attempt, Bench, Prompted, Sourced
from sharpen.methods.distillation import (
    Measured,
    check_tools,
    check_way,
    copies_tries,
    distillation,
    exchange,
    gather_taught,
    measure_teacher,
    same_tools,
    teaching,
    uncontrolled,
)
from sharpen.methods.expert_iteration import expert_iteration
from sharpen.methods.hints import hintable
from sharpen.methods.prompt import few_shot
from sharpen.methods.rejection_sampling import Gathered, Round, as_set, gather, more_samples, rejection_sampling
from sharpen.methods.sft import play_demonstrated, sft
from sharpen.records import Decision, Evaluation, Filtered, Gain, Measurements, Record, RoundPurity, SampleKey
from sharpen.sampling import Pool
from sharpen.stats import families_needed, level_text, next_alpha, paired_gain, pass_interval, smallest_effect
from sharpen.store.files import write_json
from sharpen.store.rungs import CONTROL, RungName
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import TaskSource, load_tasks
from sharpen.verifiers.base import risks

DEMONSTRATIONS, DEMONSTRATED = "demonstrations/quality.json", f"demonstrations/{DESCRIBED}"


# The default rungs of settings with a teacher: its behaviour first, since rounds of one's own tries start from what stands then.
TAUGHT: tuple[advisor.Method, ...] = ("few-shot", "sft", "distillation", "rejection-sampling", "expert-iteration")


class LadderSettings(Record, frozen=True, kw_only=True):
    """``rungs`` in order; the bare model is always first. By default all of them, distillation only where the settings name a teacher (``TAUGHT``); each is
    refused where it would be useless. ``rounds`` bounds expert iteration; ``control`` puts a control beside rejection sampling, and beside distillation
    of a teacher of another lineage.

    ``delta`` is the smallest gain of interest in pass@1, ``alpha`` the chance of keeping something no better, shared among all tries of the
    ladder and all looks at each. ``panel`` are tasks outside the run's own, all of whose splits every rung is also evaluated on: a rung that is
    surely worse there than the bare model, by more than ``panel_drop``, has forgotten too much and is rolled back.

    A round of self-training that is rolled back, or finds nothing to keep, is made again in those of the ``ways`` that the advisor names, at most ``retries``
    times in all, before a plateau is called. ``retry_temperature`` is what the way "temperature" samples at.

    A round may buy pass@1 with pass@k, with distinct solutions or with entropy (``diversity.diversity``). Such a round is shown, and with ``collapse: refuse``
    rolled back, where it surely loses more than ``pass_k_drop`` of pass@k (0: METHODS calls any sure fall a collapse, and positives alone bring it about,
    2506.01347), the share ``distinct_drop`` of the solutions beyond a task's first, or of their entropy (a half is ours; distinct paths are what the next
    round learns from, 2308.01825), or ``entropy_drop`` of the tokens' entropy (ours: nearly all of it, since every honest gain costs some, and what can be
    gained ends where it does, 2505.22617). It is looked for in the tries that are there; ``collapse_n`` makes so many of each dev task where a round is to
    be kept (0: none).

    ``demo_tries`` are so many tries of every demonstrated task, at most ``evaluation.n``, by the base before SFT and by the student after it: they show what
    it copied of its demonstrators (0: not looked for). Nothing is decided by them.

    ``purity`` is the bar for what a verifier that is not exact keeps: the lower bound of the share that people call good must be at it or over.
    ``trust_unaudited_verifier`` goes on without, and everything made from there on says so.
    """

    rungs: tuple[advisor.Method, ...] = tuple(method for method in TAUGHT if method != "distillation")
    rounds: int = 3
    control: bool = True
    retries: int = 2
    ways: tuple[advisor.Variant, ...] = ("hints", "more-samples", "temperature", "negatives", "continue")
    retry_temperature: float = 1.3
    delta: float = 0.03
    alpha: float = 0.05
    panel: TaskSource | None = None
    panel_drop: float = 0.0
    collapse: Literal["show", "refuse"] = "show"
    collapse_n: int = 0
    pass_k_drop: float = Drops().pass_k
    distinct_drop: float = Drops().distinct
    entropy_drop: float = Drops().entropy
    demo_tries: int = 1
    purity: float = BAR
    trust_unaudited_verifier: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise SettingsError(f"rounds is {self.rounds}, but must be at least 1")
        if not 0 <= self.retries <= 9:
            raise SettingsError(f"retries is {self.retries}, but must be 0 (never) to 9")
        if self.retry_temperature <= 0:
            raise SettingsError(f"retry_temperature is {self.retry_temperature}, but must be over 0")
        if not 0 < self.alpha < 1:
            raise SettingsError(f"alpha is {self.alpha}, but must be between 0 and 1")
        if self.delta < 0:
            raise SettingsError(f"delta is {self.delta}, but must be 0 or more")
        for name in ("panel_drop", "pass_k_drop", "distinct_drop", "entropy_drop"):
            if not 0 <= (drop := getattr(self, name)) < 1:
                raise SettingsError(f"{name} is {drop}, but must be 0 or more and under 1")
        for name in ("collapse_n", "demo_tries"):
            if (many := getattr(self, name)) < 0:
                raise SettingsError(f"{name} is {many}, but must be 0 or more")
        if not 0 < self.purity < 1:
            raise SettingsError(f"purity is {self.purity}, but must be between 0 and 1")

    @property
    def climbs(self) -> tuple[advisor.Method, ...]:
        """The rungs that may be tried, in order, expert iteration once a round."""
        return tuple(rung for rung in self.rungs for _ in range(self.rounds if rung == "expert-iteration" else 1))

    @property
    def judged(self) -> int:
        """How many gains may be judged, at least 1: those of the rungs, and of rounds made again."""
        return max(len(self.climbs) + self.again, 1)

    @property
    def again(self) -> int:
        """How many rounds may be made again: each, at most, once in each of the ``ways``."""
        return min(self.retries, len(set(self.ways)) * sum(rung in advisor.ROUNDS for rung in self.climbs))

    @property
    def keeps(self) -> bool:
        """Whether any rung trains on what a verifier keeps of tries."""
        return bool({"rejection-sampling", "expert-iteration", "distillation"} & set(self.rungs))

    def share(self, passed_on: float = 0.0) -> float:
        """The alpha of one gain, after a rung that was kept and ``passed_on`` its own (``stats.next_alpha``)."""
        return next_alpha(self.judged, passed_on, self.alpha)

    def level(self, looks: int, passed_on: float = 0.0) -> float:
        """At which a gain is judged, at each of so many looks."""
        return 1 - self.share(passed_on) / looks


class _Unvouched(Refused):
    """Nobody vouches for what the verifier keeps, which labels or trust may change."""


@dataclass
class Rung:
    """What became of one rung. ``decision`` is a refusal where nothing was made."""

    name: str
    method: str
    agent: Prompted | None
    decision: Decision
    dev: Evaluation | None = None
    test: Evaluation | None = None
    panel: Evaluation | None = None
    control: bool = False
    variant: str = ""


@dataclass
class Ladder:
    """The rungs climbed so far, and the one that stands.

    ``labels`` is where people's labels lie; ``trust`` goes on with a verifier that is neither exact nor audited; ``waiting`` says that a rung was left out
    for want of labels. ``advice`` are the thresholds by which the advisor names another way to make a round that was rolled back.
    """

    bench: Bench
    settings: LadderSettings
    rungs: list[Rung] = field(default_factory=list)
    survivors: tuple[Sourced, ...] = ()
    seen: Measurements = field(default_factory=Measurements)
    panel: TaskSet | None = None
    labels: Path | None = None
    trust: bool = False
    waiting: bool = False
    taught: Measured | None = None
    advice: advisor.AdvisorSettings = field(default_factory=advisor.AdvisorSettings)
    _had: Pool | None = None
    _made: set[tuple[bool, str, frozenset[SampleKey]]] = field(default_factory=set)
    _vouched: set[SampleKey] = field(default_factory=set)
    _retried: int = 0
    _passed_on: float = 0.0

    @property
    def standing(self) -> Rung:
        """The best rung so far: the last that was kept."""
        return [rung for rung in self.rungs if rung.decision.outcome in ("baseline", "keep") and not rung.control][-1]

    # ------------------------------------------------------------ climbing

    def climb(self) -> Rung:
        """All rungs, then the test split once, for the base and for what ships. Returns the rung that ships."""
        if set(self.settings.rungs) - {"few-shot"}:  # which shows, and trains nothing
            self.bench.permitted()
        if self.labels is not None:
            read_labels(self.labels)  # damage is said before anything is paid for
        if said := too_small(self.settings, self.bench.evaluation, self.bench.tasks):
            self.bench.say(said)
        self.seen = self.look()
        self.panel = load_tasks(self.settings.panel) if self.settings.panel is not None else None
        self._baseline()
        for method in self.settings.rungs:
            if self.waiting:
                break  # what would come next samples from what these labels decide on
            rounds = self.settings.rounds if method == "expert-iteration" else 1
            for _ in range(rounds):
                if self._try(method).decision.outcome != "keep" and not self._retry(method):
                    break  # a round that was not better leaves the next one the same prior: the plateau, or nothing provable here
        if self.waiting:
            self.bench.say("the test split stays closed: with the labels that are missing, another rung may ship")
        else:
            self._open_test()
        return self.standing

    def look(self) -> Measurements:
        """What can be known before the first rung: demonstrations, and whether the verifier passes gold and fails no-ops."""
        tasks, verifier = self.bench.tasks, self.bench.verifier
        recorded = tasks.recorded
        shown = self.bench.demonstrations()
        worth = weigh(shown, recorded.left_out if recorded is not None else {}, self.bench.seed)
        write_json(self.bench.run.folder / DEMONSTRATIONS, worth)
        write_json(self.bench.run.folder / DEMONSTRATED, describe(shown, self.bench.seed))
        if worth.count:
            errors = f" ({worth.errors} ended in an error)" if worth.errors else ""
            self.bench.say(
                f"demonstrations: {worth.passed} of {worth.count} pass{errors}, the ceiling of imitation; "
                f"they cover {worth.covered} of {worth.tasks} tasks"
            )
        timeout_s = self.bench.sampling.verifier_timeout_s
        checked = check(self.bench.checking(), self.bench.run.folder, timeout_s, cheats=self.settings.keeps)
        if checked.checks.example:
            self.bench.say(f"the verifier fails its checks: {checked.checks.example}")
        if checked.cheat:
            self.bench.say(f"the verifier passes a cheat: {checked.cheat}")
        for risk in risks(verifier):
            self.bench.say(risk)
        return Measurements(
            risks=risks(verifier),
            cheat=checked.cheat or "",
            demonstrations=worth.count,
            demonstrations_passing=worth.passed,
            verifier=verifier.name,
            verifier_exact=verifier.exact,
            gold_passes=checked.checks.gold_passes,
            noop_fails=checked.checks.noop_fails,
        )

    def _baseline(self) -> None:
        bench = self.bench
        name = self._name("base")
        agent = Prompted(bench.base)
        dev = bench.evaluate(name, agent, "dev")
        decision = Decision(outcome="baseline", action="start from it", reasons=("the bare model, as it came",))
        panel = bench.look_aside(name, agent, self.panel) if self.panel is not None else None
        self._add(Rung(name, "base", agent, decision, dev, panel=panel))

    def _try(self, method: advisor.Method, variant: advisor.Variant | None = None) -> Rung:
        """One rung by ``method``, or another way of it, from what stands: advise, do it, evaluate it on dev, decide."""
        name, way = self._name(method, variant), variant or ""
        decision = advisor.advise(method, self.seen)
        if decision.outcome == "refuse":
            return self._add(Rung(name, method, None, decision, variant=way))
        try:
            attempt = self._do(method, name, self._round(variant))
        except Refused as refusal:
            awaits = isinstance(refusal, Unsettled | _Unvouched)
            refused = Decision(outcome="refuse", action=f"leave out {method}", reasons=(str(refusal),), awaits=awaits)
            return self._add(Rung(name, method, None, refused, variant=way))
        before = self.standing
        rung = self._decide(Rung(name, method, attempt.proposal, decision, variant=way))
        self._add(rung)
        self._filtered(before, rung, attempt)
        if method == "sft":
            self._habits(rung, attempt)
        if rung.decision.outcome == "keep":
            self.survivors = attempt.survivors if method == "expert-iteration" else (*self.survivors, *attempt.survivors)
            self._had = None
            self._made.clear()
        if attempt.control is not None:
            self._control(rung, attempt.control)
        if self.taught is not None and method == "distillation":
            self._compare(rung, self.taught)
        return rung

    def _retry(self, method: advisor.Method) -> bool:
        """The pawl: make the round that was rolled back in the other ways that the advisor names, until one is kept. Whether one was.

        A round that was refused is made again only where it was for want of any success: with hints. Where another way is refused, the next is tried.
        """
        if method not in advisor.ROUNDS:
            return False
        first = [rung for rung in self.rungs if not rung.control][-1]
        refused = first.decision.gain is None and (self.seen.tasks_solved or self.seen.solved_later)
        while not refused and not self.waiting and self._retried < self.settings.retries:
            ways = [(way, why) for way, why in advisor.variants(self.seen, self.advice) if self._differs(way)]
            if not ways or advisor.ended(self.seen, self.advice, self.settings.delta) == "plateau":
                break
            self._retried += 1
            way, why = ways[0]
            self.bench.say(f"retry {self._retried} of {self.settings.retries}, {way}: {why.says}; {why.measured}")
            if self._try(method, way).decision.outcome == "keep":
                return True
        if said := advisor.ending(self.seen, self.advice, self.settings.delta):
            self.bench.say(said)
        return False

    def _differs(self, way: advisor.Variant) -> bool:
        """Whether a round made that way is wanted, and would be another one."""
        if way not in self.settings.ways:
            return False
        match way:
            case "continue":
                standing = self.standing.agent
                return self.bench.training.start == "base" and standing is not None and standing.model != self.bench.base
            case "temperature":
                return self.bench.sampling.temperature != self.settings.retry_temperature
            case "hints":
                return self.bench.hints.share > 0
        return True

    def _round(self, way: advisor.Variant | None) -> Round:
        """How a round is made. Tries that what stands has made already are taken over."""
        usual = dataclasses.replace(as_set(self.bench), had=self._had)
        match way:
            case "more-samples":
                return more_samples(self.bench, self._had)
            case "temperature":
                return dataclasses.replace(usual, had=None, sampling=replace(usual.sampling, temperature=self.settings.retry_temperature))
            case "continue":
                return dataclasses.replace(usual, start="current")
            case "hints":
                return dataclasses.replace(usual, hints=True)
            case "negatives":
                return dataclasses.replace(usual, negatives=True)
        return usual

    def _do(self, method: advisor.Method, name: str, how: Round) -> Attempt:
        bench, standing = self.bench, self.standing.agent
        assert standing is not None
        if method == "few-shot":
            return few_shot(bench, name, standing)
        if method == "sft":
            play_demonstrated(bench, self.rungs[0].name, Prompted(bench.base), self.settings.demo_tries)  # while the base may be open
            return sft(bench, name, standing)
        if method == "distillation":
            return self._distil(name, standing)
        found = gather(bench, name, standing, self.survivors, how)
        # At another temperature no try is any other round's, nor says what the usual ones hold.
        if how.sampling.temperature == bench.sampling.temperature:
            self._had = found.pool
            assert self.standing.dev is not None
            rate = pass_interval(self.standing.dev.tasks, 1, 0.95, bench.seed)
            shown = hintable(bench, found.pool) if self._differs("hints") and self.settings.again else None  # which asks the verifier
            self.seen = replace(self._succeeded(found.pool), rate=rate, hintable=shown)
        self._worth(method, name, found, hinted=how.hints)
        trains = how.negatives, how.begins(bench, standing).fingerprint, frozenset(found.selection.kept)
        if trains in self._made:
            raise Refused(
                "what it keeps is what a round before it kept, which was rolled back: the same tries would train the same model again"
            )
        self._made.add(trains)
        if method == "rejection-sampling":
            control = self.settings.control and dataclasses.replace(how, had=None) == as_set(bench)
            if control and bench.grader_chooses:
                bench.say(
                    f"{name.removeprefix('rungs/')}: no control, since the verifier chose every try before its verdict could be ignored"
                )
            return rejection_sampling(bench, name, standing, self.survivors, how, found, control=control and not bench.grader_chooses)
        return expert_iteration(bench, name, standing, self.survivors, how, found)

    def _distil(self, name: str, standing: Prompted) -> Attempt:
        """Measure the teacher, ask the advisor whether it has anything to copy, and copy it."""
        bench, before = self.bench, self.standing
        check_way(bench, standing)
        mine = bench.tries(before.name, standing, "dev", bench.evaluation.n)
        check_tools(bench, name, standing, mine)
        measured = self.taught = measure_teacher(bench, name, standing)
        assert before.dev is not None
        seen = replace(self.seen, teaching=teaching(measured, before.dev, before.name, bench.seed))
        decision = advisor.worth_copying(seen)
        if decision.outcome == "refuse":
            raise Refused(decision.reasons[0])
        bench.say(f"{name.removeprefix('rungs/')}: {decision.reasons[0]}")
        same_tools(measured.name, measured.pool, mine)
        found = None
        if copies_tries(bench.distillation):
            found = gather_taught(bench, name, standing, self.survivors)
            self._worth("distillation", name, found)
        why = uncontrolled(bench.teacher, bench.distillation)
        if self.settings.control and why:
            bench.say(f"{name.removeprefix('rungs/')}: no self-trained control, since {why}")
        return distillation(bench, name, standing, self.survivors, found, control=self.settings.control and not why)

    def _worth(self, method: advisor.Method, name: str, found: Gathered, *, hinted: bool = False) -> None:
        """Ask the advisor whether a round's tries hold anything to keep, and whether what is kept may be trusted."""
        decision = advisor.after_sampling(method, self._succeeded(found.pool), hinted=hinted)
        if decision.outcome == "refuse" and not found.selection.kept:  # where hints brought some there is something to keep
            raise Refused(decision.reasons[0])
        self._gate(method, name, found)

    def _succeeded(self, pool: Pool) -> Measurements:
        """What is seen with how often the tries of ``pool`` solve its tasks."""
        solved = {key.task for key in pool.wanted if pool.verdicts[key]}
        return succeeded(replace(self.seen, tasks_sampled=None), pool.first_wave, solved, self.bench.seed)

    def _gate(self, method: advisor.Method, name: str, found: Gathered) -> None:
        """Measure the purity of what is kept by the labels there are, and refuse what neither they nor the verifier's exactness vouch for.

        A rung that was once trained on trust keeps its banner: labels that come later do not change how it was made. Of a round that is made again the rows
        that are new to it are measured, by themselves.
        """
        run = self.bench.run
        trusted = any(line.get("event") == "trusted" and line.get("rung") == name for line in run.ledger())
        labels = read_labels(self.labels) if self.labels is not None else Labels()
        # Rows that a round before was vouched for say nothing of those that it did not keep, least of all of hinted ones.
        kept = [key for key in found.selection.kept if key not in self._vouched] or found.selection.kept
        purity = measure({key: content(found.tries[key]) for key in kept}, labels, self.settings.purity)
        write_json(run.folder / name / "purity.json", RoundPurity(purity=purity, kept=tuple(shuffled(kept))))
        seen = replace(self.seen, purity=purity, trusted_unaudited=self.trust or self.settings.trust_unaudited_verifier or trusted)
        decision = advisor.gate(method, seen, f"sharpen label {run.folder} --rung {name.removeprefix('rungs/')}")
        if not seen.verifier_exact or purity.share.n:
            self.bench.say(f"{name.removeprefix('rungs/')}: {advisor.purity_line(purity)}")
        for note in purity.notes if purity.share.n or not seen.verifier_exact else ():
            self.bench.say(f"labels: {note}")
        if decision.outcome == "refuse":
            self.waiting = self.waiting or (purity.outcome == "open" and not seen.cheat)
            raise _Unvouched(decision.reasons[0])
        self._vouched |= set(found.selection.kept)
        banners = (advisor.unaudited(seen.verifier), *seen.risks) if trusted else decision.banners
        if set(banners) - {*seen.risks} and not trusted:
            run.note({"event": "trusted", "rung": name, "verifier": seen.verifier})
        self.bench.banners = tuple(dict.fromkeys((*self.bench.banners, *banners)))

    def _decide(self, rung: Rung) -> Rung:
        """Compare with what stands on the same dev tasks; where that stays undecided, look again with more tries of both.

        The alpha of a rung that is kept passes on to the next that is judged (``stats.next_alpha``).
        """
        looks = self.bench.evaluation.looks
        level = self.settings.level(len(looks), self._passed_on)
        before, agent = self.standing, rung.agent
        assert agent is not None and before.agent is not None
        for n in looks:
            dev = self.bench.evaluate(rung.name, agent, "dev", n)
            base = self.bench.evaluate(before.name, before.agent, "dev", n)
            gain = replace(paired_gain(base.tasks, dev.tasks, level, self.bench.seed), base=before.name, other=rung.name)
            rung.dev, rung.decision = dev, advisor.judge_gain(gain, self.settings.delta)
            if rung.decision.outcome != "undecided":
                break
        forgotten = None
        if self.panel is not None:
            rung.panel = self.bench.look_aside(rung.name, agent, self.panel)
            aside = self.rungs[0].panel
            assert aside is not None
            forgotten = replace(
                paired_gain(aside.tasks, rung.panel.tasks, level, self.bench.seed), base=self.rungs[0].name, other=rung.name
            )
            rung.decision = advisor.judge_forgetting(rung.decision, forgotten, self.settings.panel_drop)
        self._watch(before, rung, forgotten)
        self._passed_on = self.settings.share(self._passed_on) if rung.decision.outcome == "keep" else 0.0
        return rung

    def _watch(self, before: Rung, rung: Rung, forgotten: Gain | None) -> None:
        """Whether what the rung gains is bought with other ways to succeed: what it did to them beside what stood, and the decision with that."""
        bench, settings, gain = self.bench, self.settings, rung.decision.gain
        assert before.agent is not None and rung.agent is not None and rung.dev is not None and gain is not None
        n = max((one.samples for one in rung.dev.tasks), default=bench.evaluation.n)
        if rung.decision.outcome == "keep":
            n = max(n, settings.collapse_n)
        was, now = bench.tries(before.name, before.agent, "dev", n), bench.tries(rung.name, rung.agent, "dev", n)
        drops = Drops(pass_k=settings.pass_k_drop, distinct=settings.distinct_drop, entropy=settings.entropy_drop)
        seen = diversity(was, now, (before.name, rung.name), bench.evaluation, gain.deciding.level, drops, bench.seed)
        if forgotten is not None and self.rungs[0].panel is not None and rung.panel is not None:
            panel = off_task(self.rungs[0].panel, rung.panel, forgotten, settings.panel_drop)
            seen = replace(seen, changes=(*seen.changes, panel))
        write_json(bench.run.folder / rung.name / WRITTEN, seen)
        rung.decision = advisor.judge_collapse(rung.decision, seen, settings.collapse == "refuse")

    def _compare(self, rung: Rung, taught: Measured) -> None:
        """What the student has of its teacher: at which share of the cost, how it goes about tasks, and which faults came along."""
        bench, folder = self.bench, self.bench.run.folder / rung.name
        before = next(one for one in self.rungs if rung.decision.gain is not None and one.name == rung.decision.gain.base)
        assert before.dev is not None and before.agent is not None and rung.dev is not None and rung.agent is not None
        exchange(bench, rung.name, taught, (before.name, before.agent, before.dev), (rung.agent, rung.dev))
        was, now = self._tries(before), self._tries(rung)
        beside = next((self._tries(one) for one in self.rungs if one.name == f"{rung.name}{CONTROL}"), None)
        write_json(folder / DESCRIBED, compare(taught.pool, was, now, bench.seed))
        write_json(folder / FAULTY, faults(taught.pool, was, now, beside, bench.seed))

    def _tries(self, rung: Rung) -> Pool:
        """The tries at dev tasks that a rung was measured by."""
        assert rung.agent is not None and rung.dev is not None
        return self.bench.tries(rung.name, rung.agent, "dev", max((one.samples for one in rung.dev.tasks), default=None))

    def _habits(self, rung: Rung, attempt: Attempt) -> None:
        """What the student does as its demonstrators do at the tasks that they showed it, beside the base that it was trained from."""
        bench, n = self.bench, self.settings.demo_tries
        assert attempt.selection is not None
        was = play_demonstrated(bench, self.rungs[0].name, Prompted(bench.base), n)
        now = play_demonstrated(bench, rung.name, attempt.proposal, n)
        if was is None or now is None:
            return
        shown = bench.demonstrations()
        theirs = dataclasses.replace(shown, tasks=now.tasks, wanted=tuple(key for key in shown.wanted if key.task in now.tasks))
        trained = len(now.tasks.keys() & {key.task for key in attempt.selection.kept})
        folder = bench.run.folder / rung.name
        write_json(folder / DESCRIBED, replace(compare(theirs, was, now, bench.seed), trained=trained))
        write_json(folder / FAULTY, faults(theirs, was, now, seed=bench.seed))

    def _filtered(self, before: Rung, rung: Rung, attempt: Attempt) -> None:
        """What leaving known faults out came to: how much of them there was to choose from, what trains, and what the student does of it."""
        bench, rules = self.bench, self.bench.selection.behaviour
        if rules is None or attempt.pool is None or attempt.selection is None:
            return
        pool, dropped = attempt.pool, {one.key for one in attempt.selection.left_out}
        was, now = self._tries(before), self._tries(rung)
        tries = {
            "sampled": [pool.trajectories[key] for key in pool.first_wave.wanted],
            "passing": [pool.trajectories[key] for key in pool.wanted if pool.verdicts[key]],
            "trains": [one for _, one in attempt.trains if one.key not in dropped],
            "before": [was.trajectories[key] for key in was.wanted],
            "after": [now.trajectories[key] for key in now.wanted],
        }
        if rates := kept_out(rules, tries, {task.key: task.family for task in bench.tasks.tasks}, bench.seed):
            write_json(bench.run.folder / rung.name / FILTERED, Filtered(base=before.name, other=rung.name, rates=rates))

    def _control(self, real: Rung, attempt: Attempt) -> None:
        """Evaluate the control against the same rung as the real arm. It never stands, whatever it gains."""
        before = next(rung for rung in self.rungs if real.decision.gain is not None and rung.name == real.decision.gain.base)
        name = f"{real.name}{CONTROL}"
        assert real.dev is not None and before.agent is not None
        n = real.dev.tasks[0].samples
        dev = self.bench.evaluate(name, attempt.proposal, "dev", n)
        base = self.bench.evaluate(before.name, before.agent, "dev", n)
        assert real.decision.gain is not None
        level = real.decision.gain.deciding.level
        gain = replace(paired_gain(base.tasks, dev.tasks, level, self.bench.seed), base=before.name, other=name)
        reason = advisor.judge_gain(gain, self.settings.delta).reasons[0]
        what = "self-trained on as many tokens" if real.method == "distillation" else "verdicts ignored"
        decision = Decision(outcome="baseline", action="a control, never kept", reasons=(f"{what}: {reason}",), gain=gain)
        self._add(Rung(name, "control", attempt.proposal, decision, dev, control=True))

    def _open_test(self) -> None:
        """The test split, once: for the base, and for what ships. Opening it again for something else is written down and shown."""
        for rung in dict.fromkeys((self.rungs[0].name, self.standing.name)):
            entry = next(r for r in self.rungs if r.name == rung)
            assert entry.agent is not None
            if not self.bench.tasks.split("test").tasks:
                return
            self.bench.run.note({"event": "test opened", "rung": entry.name, "agent": entry.agent.fingerprint})
            entry.test = self.bench.evaluate(entry.name, entry.agent, "test")

    # ------------------------------------------------------------ keeping track

    def _name(self, method: str, variant: str | None = None) -> str:
        """Retries have the number of the round that they make again, so that the others are named as if none had been made."""
        plain = sum(not rung.control and not rung.variant for rung in self.rungs)
        name = RungName(plain, method) if variant is None else RungName(plain - 1, method, self._retried, variant)
        return name.stage

    def _add(self, rung: Rung) -> Rung:
        rung.decision = replace(rung.decision, banners=self.bench.banners, variant=rung.variant)
        self.rungs.append(rung)
        if (tried := advisor.tried(rung.method, rung.decision)) is not None:
            self.seen = replace(self.seen, tried=(*self.seen.tried, tried))
        self._write(rung)
        return rung

    def _write(self, rung: Rung) -> None:
        folder = self.bench.run.folder / rung.name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "decision.json", rung.decision)
        self.bench.say(f"{rung.name.removeprefix('rungs/')}: {rung.decision.action}: {'; '.join(rung.decision.reasons)}")


def too_small(settings: LadderSettings, evaluation: EvaluationSettings, tasks: TaskSet) -> str:
    """What to know before paying: that the dev split cannot show the smallest gain of interest; "" where it can, or where nothing is judged."""
    dev = tasks.split("dev").tasks
    families, n, level = len({task.family for task in dev}), evaluation.looks[-1], settings.level(len(evaluation.looks))
    visible = smallest_effect(families, len(dev), n, level)
    if not settings.rungs or not settings.delta or not visible > settings.delta:
        return ""
    needed = families_needed(settings.delta, len(dev) / families, n, level)
    return (
        f"dev: {families} families, {len(dev)} tasks, {n} tries each show a gain of about {100 * visible:.0f} points or more (four times in five, judged at "
        f"{level_text(level)} %); one of {100 * settings.delta:g} points, ladder.delta, will most likely stay undecided: that takes about {needed} families"
    )
