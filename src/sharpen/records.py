"""The nouns of sharpen, on one page. Records are frozen, hold no behaviour and survive a JSON round trip.

Read this file first, then ``methods/rejection_sampling.py`` (the story), then ``advisor.py`` (the choice).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record: immutable, keyword-only, unknown fields refused when read back."""


# ---------------------------------------------------------------- conversation


class ToolCall(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One call of a tool. ``arguments`` is a JSON string: as a mapping, Arrow would pad it with nulls."""

    id: str = ""
    name: str
    arguments: str


class Message(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a conversation, in the field's usual roles.

    ``problem`` says why a tool call in an assistant's ``content`` could not be read; it is for the environment, never for a template.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    problem: str | None = None


# ---------------------------------------------------------------- tasks and models


class Task(Record, frozen=True, kw_only=True):
    """Something to be done.

    ``key`` is stable across runs and machines; ``family`` is the unit of splitting and of resampling (siblings share
    it); ``params`` and ``prompt`` are what the environment starts from; ``reference`` is hidden from the policy and
    seen by the verifier only.
    """

    key: str
    family: str
    split: str = ""
    prompt: tuple[Message, ...] = ()
    params: dict[str, Any] = {}
    reference: Any = None


class Terms(Record, frozen=True, kw_only=True):
    """What may be done with the words of ``teacher`` (a model, a person or a service, by name), and who found that out.

    ``licence`` is an SPDX id or the name of the terms, ``training`` what it says of training other models on the words, ``conditions`` what has to be
    kept to where it allows that. ``settled_by`` is a person's name, ``settled_on`` the ISO date, ``evidence`` a URL or a file; ``expires`` is the last
    ISO date on which the words may train, "" for none. Nothing here is legal advice.
    """

    teacher: str
    licence: str
    training: Literal["allowed", "forbidden", "unknown"]
    conditions: tuple[str, ...] = ()
    settled_by: str
    settled_on: str
    evidence: str
    expires: str = ""


class Maker(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Whose words a trajectory is: a model, a program or a person called ``name``.

    ``root`` is the fingerprint of the weights that a model descends from (its own, where it was not trained here), "" where nothing is known of
    weights. ``terms`` ride on the words: those settled for the maker, and those of everyone whose words it was itself trained on.
    """

    name: str
    root: str = ""
    terms: tuple[Terms, ...] = ()


class Lineage(Record, frozen=True, kw_only=True):
    """Where weights come from: the base they started at, the model trained from, what it was trained on and how.

    ``root`` is the fingerprint of the base, "" where these weights are the base. ``banners`` are warnings that whatever is made of these weights
    inherits, such as that nobody audited the verifier, and so are ``terms``: those of everyone outside this lineage whose words were trained on.
    """

    base: str
    root: str = ""
    parent: str | None = None
    training_set: str | None = None
    settings: dict[str, Any] = {}
    banners: tuple[str, ...] = ()
    terms: tuple[Terms, ...] = ()


class Model(Record, frozen=True, kw_only=True):
    """Weights with tokenizer and chat template. What ``sft`` takes and gives.

    ``path`` is a local folder; ``fingerprint`` a digest of its weights, tokenizer and template, so that a sample says
    which weights made it; ``kind`` tells a pretrained folder from the scripted fake or a served endpoint.
    """

    name: str
    path: str
    fingerprint: str
    kind: Literal["pretrained", "scripted", "endpoint"] = "pretrained"
    lineage: Lineage


# ---------------------------------------------------------------- what happened


class SampleKey(Record, frozen=True, kw_only=True):
    """The identity of one try. Two tries with the same key are the same try."""

    model: str
    task: str
    environment: str
    sampling: str
    index: int


Stop = Literal[
    "done",  # the environment ended the episode
    "turn_limit",  # the policy used up its turns: the policy's failure
    "token_limit",  # a turn hit max_tokens and the episode ended there: the policy's failure
    "overflow",  # the conversation outgrew the context: the policy's failure
    "filtered",  # a server's content filter stopped what the policy said: the policy's failure
    "crashed",  # an outside program that the policy drove gave up (non-zero exit): the policy's failure
    "error",  # broken infrastructure: neither a pass nor a fail
    "cancelled",
]


class TurnTokens(Record, frozen=True, kw_only=True):
    """One assistant turn as the engine saw it.

    ``prompt`` and ``output`` are token ids, ``None`` where the engine returned text only. ``output`` holds every sampled
    token, the end-of-turn token included when it was sampled. ``stop`` is why the engine stopped. ``logprob`` is the log-probability of all of ``output``, in
    nats, under what it was drawn from (temperature and top-p applied); ``None`` where the engine did not say.
    """

    prompt: tuple[int, ...] | None = None
    output: tuple[int, ...] | None = None
    stop: Literal["stop", "length"] = "stop"
    logprob: float | None = None


class Cost(Record, frozen=True, kw_only=True):
    """What a trajectory cost. Tokens as the engine counted them; ``seconds`` is wall time from start to end."""

    prompt_tokens: int = 0
    sampled_tokens: int = 0
    seconds: float = 0.0
    turns: int = 0


class Spent(Record, frozen=True, kw_only=True):
    """What was asked of policies and what it cost: calls that were answered, tokens as the engines counted them, US dollars.

    ``unpriced`` of the calls have no known price and are in no dollar figure; of ``unsized`` ones nobody said how many tokens they took, so what is
    missing is in no figure of tokens or dollars. ``seconds`` is wall time.
    """

    calls: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0
    unsized: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.sampled_tokens


class Thread(Record, frozen=True, kw_only=True):
    """A conversation beside the main one: a sub-agent's, or what came before or after an outside program rewrote its history.

    ``turns`` are its last sampled turns: those it shares with the main conversation, or with a thread before it, are counted there.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    turns: tuple[TurnTokens, ...] = ()


class Considered(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One of several tries that an agent chose from. ``agent`` made it, with the weights ``model`` (a fingerprint), as its try number ``index``.

    ``verdict`` and ``score`` are the chooser's, ``vote`` is what it voted for (the beginning; None: it cast none). ``stop`` is ``error`` and
    ``error`` says why where it broke: then it was not chosen from.
    """

    agent: str
    model: str
    index: int
    stop: Stop
    verdict: Literal["pass", "fail", "error"] | None = None
    score: float | None = None
    vote: str | None = None
    error: str | None = None


class Choice(Record, frozen=True, kw_only=True):
    """Which of its ``tries`` an agent chose (``chosen``, an index into them) and what ``by``.

    ``wanted`` is how many there could have been: fewer were made where the first pass ended it. ``grader`` says that the chooser is also what
    grades the choice, so that one such try passes as often as any of ``wanted`` does.
    """

    by: str
    wanted: int
    chosen: int
    tries: tuple[Considered, ...]
    grader: bool = False


class Trajectory(Record, frozen=True, kw_only=True):
    """What happened in one try.

    ``messages`` is the whole conversation, from the first system or user message on. ``turns`` are the assistant turns in order
    (empty for demonstrations: only text exists). Where there were several conversations, these are the longest one's, and the others
    are ``threads``. ``actions`` is what the environment understood, the unit of
    de-duplication. ``outcome`` is what the environment itself says at the end (``won``, ``score`` and the like).
    ``agent`` names who made it (a model's name, ``expert``, ...), ``maker`` says whose words it is, None where nobody told. Where the agent chose one of
    several tries this is the one, ``choice`` says what the others were, and ``cost`` is the cost of all.
    Of a try that broken infrastructure ended, ``error`` is what was said and ``fault`` its class: one of ``errors.Failure``, ``environment`` or ``timeout``.
    ``hint`` is what the policy was shown of the reference, behind the task; ``messages`` are without it, and ``turns`` without their ids, which follow it.
    """

    key: SampleKey
    agent: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    turns: tuple[TurnTokens, ...] = ()
    actions: tuple[str, ...] = ()
    stop: Stop
    outcome: dict[str, Any] = {}
    cost: Cost = Cost()
    error: str | None = None
    fault: str | None = None
    threads: tuple[Thread, ...] = ()
    choice: Choice | None = None
    maker: Maker | None = None
    hint: str | None = None


class Verdict(Record, frozen=True, kw_only=True):
    """What a verifier says of one trajectory: pass, fail or error. Three values, never two.

    ``bool(verdict)`` is true for a pass and for nothing else: a score of 0.1 is not a pass and a broken verifier is not a fail.
    """

    key: SampleKey
    outcome: Literal["pass", "fail", "error"]
    score: float | None = None
    reason: str = ""
    verifier: str = ""

    def __bool__(self) -> bool:
        return self.outcome == "pass"


# ---------------------------------------------------------------- training


class Row(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One training row: ``input_ids`` and, same length, ``labels`` (the id where trained, -100 where not).

    ``key`` is the try it came from, ``source`` where that came from (``demonstration``, ``sampled``, ``earlier round``, ``taught``, ``hinted``);
    ``origin`` says whether the ids are the engine's (``sampled``) or were rendered from text (``rendered``). ``maker`` says whose words it is, as in
    Trajectory, with the terms that let it train.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    key: SampleKey
    source: str
    origin: Literal["sampled", "rendered"]
    maker: Maker | None = None


class LeftOut(Record, frozen=True, kw_only=True):
    """A trajectory that was not selected, and why not."""

    key: SampleKey
    reason: str


class RowCounts(Record, frozen=True, kw_only=True):
    """How the rows of a training set came about.

    ``sampled`` rows hold the engine's own token ids, ``rendered`` ones were tokenised from text, for the reasons in ``rendered_because``. ``split``
    trajectories gave several rows, since a turn did not continue what was before it; ``dropped`` ones gave none, since their mask could not be
    proved. Of all ``tokens`` in the rows ``trained`` have a label and ``read_again`` are context in the second and later rows of split trajectories.
    ``by`` counts the rows by whose words they are, ``sources`` by their source.
    """

    sampled: int
    rendered: int
    split: int
    dropped: int
    tokens: int
    trained: int
    read_again: int
    rendered_because: dict[str, int] = {}
    by: dict[str, int] = {}
    sources: dict[str, int] = {}


class Selection(Record, frozen=True, kw_only=True):
    """Which trajectories train, and why each of the others does not. ``rows`` is there once rows were made of them. ``banners`` and ``terms`` as in
    Lineage; terms are there once it trained."""

    kept: tuple[SampleKey, ...]
    left_out: tuple[LeftOut, ...]
    counts: dict[str, int]
    settings: dict[str, Any] = {}
    rows: RowCounts | None = None
    banners: tuple[str, ...] = ()
    terms: tuple[Terms, ...] = ()


class TrainingReport(Record, frozen=True, kw_only=True):
    """What a trainer did. ``trained_tokens`` counts labels, ``tokens`` every token of every row passed through."""

    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    losses: tuple[float, ...] = ()
    precision: str = ""


class PreferencePair(Record, frozen=True, kw_only=True):
    """Two tries of one task that open with the same tokens, as rows: one that passed and one that failed. Labels mark what the policy said in each."""

    chosen: Row
    rejected: Row


class Pairing(Record, frozen=True, kw_only=True):
    """Which tries of a round are ``pairs`` (chosen, rejected), and why each other fail, and each pass that was to train, is in none.

    ``counts`` has the pairs, their ``tasks`` and the reasons. ``chosen_tokens`` and ``rejected_tokens`` are the trained tokens of a side, a mean over
    pairs: far apart, length is part of what is preferred. NaN without pairs.
    """

    pairs: tuple[tuple[SampleKey, SampleKey], ...]
    left_out: tuple[LeftOut, ...]
    counts: dict[str, int]
    chosen_tokens: float
    rejected_tokens: float
    settings: dict[str, Any] = {}


# ---------------------------------------------------------------- measuring and deciding


class Interval(Record, frozen=True, kw_only=True):
    """An estimate with its two-sided interval at ``level`` and the ``n`` clusters behind it. NaN where undefined."""

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95
    method: str = ""


class TaskResult(Record, frozen=True, kw_only=True):
    """Counts on one task. ``samples = passes + fails + errors``."""

    task: str
    family: str
    samples: int
    passes: int
    errors: int = 0


class Evaluation(Record, frozen=True, kw_only=True):
    """How good a model is on a named split. ``pass_at`` maps k to its interval. ``played`` says by what agent, "" for single tries of the model."""

    model: str
    split: str
    sampling: dict[str, Any]
    tasks: tuple[TaskResult, ...]
    pass_at: dict[int, Interval]
    cost: Cost
    errors: int = 0
    played: str = ""


class Parting(Record, frozen=True, kw_only=True):
    """Where demonstrations of one task part: after the same ``step - 1`` steps (counted from 1) they go on in different ways.

    ``ways`` are what they do next with how many do it, most first.
    """

    task: str
    step: int
    ways: tuple[tuple[str, int], ...]


class Label(Record, frozen=True, kw_only=True):
    """What one person said of one trajectory. One line of a labels file, which outlives runs.

    ``digest`` names what the trajectory says (``labels.content``), so that a label never speaks for another text under the same key; ``trajectory``
    is a copy without token ids, to be judged again when the run is gone. ``withdrawn`` takes back what the labeller said before. ``seconds`` is how long
    it took, ``at`` the UTC time. ``why`` it was shown: drawn at ``random`` from a population, or from the ``stratum`` of it where two verifiers
    ``disagree``; ``of`` counts the rows of the stratum, ``inclusion`` is the chance, in (0, 1], that one of them was drawn; ``population`` names the rows.
    """

    key: SampleKey
    digest: str
    label: Literal["good", "bad", "unsure", "withdrawn"]
    labeller: str
    at: str
    seconds: float
    why: Literal["random", "disagreement"] = "random"
    stratum: str = "all"
    of: int
    inclusion: float
    population: str
    trajectory: Trajectory


class Purity(Record, frozen=True, kw_only=True):
    """How much of what a selection keeps is truly good, by labels on a sample of it.

    ``share`` has a one-sided lower bound at its level that holds at all looks together (``stats.purity_bound``); ``unsure`` counts as
    not good. ``clears``: the bound is at ``bar`` or over. ``below``: surely not, and more labels would not help. ``open`` until one of them holds;
    ``missing`` is how many labels more, all good, would clear. ``notes`` say which labels were not used, and why.
    """

    rows: int
    good: int
    bad: int
    unsure: int
    share: Interval
    bar: float
    outcome: Literal["clears", "below", "open"]
    missing: int
    notes: tuple[str, ...] = ()


class RoundPurity(Record, frozen=True, kw_only=True):
    """``purity.json`` of a rung: its purity, and ``kept``, the rows it is of, in the random order in which they are to be labelled: of a round that is made
    again those that are new to it, where there are any."""

    purity: Purity
    kept: tuple[SampleKey, ...]


class Agreement(Record, frozen=True, kw_only=True):
    """How far labellers agree on ``n`` trajectories that two or more of them called good or bad: share of agreeing pairs, and Krippendorff's alpha."""

    labellers: tuple[str, ...]
    n: int
    raw: float
    alpha: float


class Probe(Record, frozen=True, kw_only=True):
    """One kind of made-up answer on ``tried`` tasks: a verifier must ``pass`` or ``fail`` it. ``right`` verdicts, ``errors``, the first wrong one."""

    kind: str
    must: Literal["pass", "fail"]
    tried: int
    right: int
    errors: int
    example: str = ""


class Confusion(Record, frozen=True, kw_only=True):
    """A verifier held against ``truth`` (labels, or a second verifier): intervals are two-sided, Clopper-Pearson.

    Of ``passes`` the share that is not good is ``false_passes`` (1 - purity), of ``good`` the share that fails ``false_fails``, of the bad ones the
    share that passes ``bad_passes``. ``unused`` counts errors on either side and labels that are unsure.
    """

    truth: str
    n: int
    passes: int
    good: int
    false_passes: Interval
    false_fails: Interval
    bad_passes: Interval
    unused: int = 0


class Audit(Record, frozen=True, kw_only=True):
    """What is known of a verifier: what it says of made-up answers, whether it says the same twice, and how often it is wrong.

    ``unstable`` of ``repeated`` inputs got two verdicts. ``forecast`` is the purity to be expected of what passes, from the error rates and the
    observed pass rate (``stats.purity_forecast``); NaN where they do not tell. What a selection keeps of it is less pure where duplicates are left out: right
    tries are alike. ``limits`` says what could not be looked at. ``gameable``: why whoever sets out to pass does, whatever the probes say, by the
    verifier's own word; "" where it declares no such way. ``sandboxed``: whether what it judges runs in a sandbox; None where nothing of it is run.
    """

    verifier: str
    exact: bool
    gameable: str = ""
    sandboxed: bool | None = None
    probes: tuple[Probe, ...]
    repeated: int
    unstable: int
    unstable_example: str = ""
    confusions: tuple[Confusion, ...] = ()
    agreement: Agreement | None = None
    purity: Purity | None = None
    forecast: float = float("nan")
    limits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class DemonstrationQuality(Record, frozen=True, kw_only=True):
    """What the demonstrations are worth, before any is left out.

    ``pass_rate`` is imitation's ceiling: the mean over tasks of the share of a task's demonstrations that pass, errors aside. Of ``tasks`` in
    the demo split ``shown`` have a demonstration and ``covered`` one that passes. ``excess`` are the assistant turns of a passing
    demonstration over the shortest passing one of its task, over the tasks that have several; ``longest_excess`` is the largest.
    ``junctions`` counts the places (a task, and the same steps so far) where two or more demonstrations can be compared, ``parted`` those
    where they go on differently, ``partings`` the first of them. ``by`` counts who made them, ``left_out`` what the files held beside, by reason.
    """

    count: int
    passed: int
    errors: int
    by: dict[str, int]
    pass_rate: Interval
    tasks: int
    shown: int
    covered: int
    excess: Interval
    longest_excess: int
    junctions: int
    parted: int
    partings: tuple[Parting, ...] = ()
    left_out: dict[str, int] = {}


class Gain(Record, frozen=True, kw_only=True):
    """A paired difference in pass@1 on the same tasks: ``other`` minus ``base``, at ``level`` for the decision and 95 % for print.

    ``smallest_visible`` is the smallest true gain this design would find with power 0.8.
    """

    base: str
    other: str
    printed: Interval
    deciding: Interval
    smallest_visible: float


class Decision(Record, frozen=True, kw_only=True):
    """The next step, or a refusal, or what became of a rung, with the numbers that forced it. ``banners`` as in Lineage, ``variant`` as in Tried.

    ``awaits``: a refusal that only somebody's word lifts, by labels, trust or terms; the same command goes on with it.
    """

    outcome: Literal["keep", "plateau", "undecided", "worse", "refuse", "proceed", "baseline"]
    action: str
    reasons: tuple[str, ...]
    gain: Gain | None = None
    banners: tuple[str, ...] = ()
    variant: str = ""
    awaits: bool = False


class Tried(Record, frozen=True, kw_only=True):
    """A rung that was tried and judged, or refused and ``why``, and how: ``""`` as the settings say, else the variant that a rollback made it try."""

    method: str
    outcome: Literal["keep", "plateau", "undecided", "worse", "refuse"]
    gain: Gain | None = None
    variant: str = ""
    why: str = ""


class TeacherSeen(Record, frozen=True, kw_only=True):
    """What is known of a teacher: whether its words may train, its pass rate and its paired gain over what stands. ``same``: it is the student itself."""

    name: str
    terms: Literal["allowed", "forbidden", "unknown"] = "unknown"
    rate: Interval | None = None
    gain: Gain | None = None
    same: bool = False


class Goal(Record, frozen=True, kw_only=True):
    """What the user wants: ``metric`` (``pass@K``) of what ships at ``value``, in (0, 1], or over."""

    metric: str = "pass@1"
    value: float


class Measurements(Record, frozen=True, kw_only=True):
    """All that the advisor may know. ``None`` means not measured.

    ``samples_per_task``, ``tasks_solved`` and ``tasks_mixed`` are of tries fixed beforehand; ``solved_later`` counts the tasks that only an adaptive
    budget's later waves solved. ``cheat`` is a cheat that the verifier passes, in a line, "" where none does; ``risks`` is what it declares of itself
    (``verifiers.base.risks``). ``purity`` is that of what this round would keep, by labels; ``trusted_unaudited`` says that the user goes on
    without; ``purity_forecast`` is what an audit's error rates make of it. ``teaching`` is what the teacher has that the student lacks.

    ``rate`` is pass@1 of what stands, ``few_shot`` what examples before the task add to it, ``demonstration_rate`` the pass rate of the demonstrations.
    ``pass_n`` is pass@``samples_per_task`` on the tasks sampled, ``rewarded_in_part`` how many of those never solved have scores that differ between tries.
    ``goal_rate`` is the goal's metric of what stands. ``tried`` are the rungs so far, in order. ``costs`` is what a method is expected to take, and
    ``left`` what may be spent, in one unit (sampled and trained tokens). ``hintable`` of the tasks never solved come with a solution that could be shown.
    """

    demonstrations: int = 0
    demonstrations_passing: int | None = None
    verifier: str | None = None
    verifier_exact: bool = False
    gold_passes: bool | None = None
    noop_fails: bool | None = None
    cheat: str = ""
    risks: tuple[str, ...] = ()
    samples_per_task: int | None = None
    tasks_sampled: int | None = None
    tasks_solved: int | None = None
    tasks_mixed: int | None = None
    solved_later: int = 0
    purity: Purity | None = None
    trusted_unaudited: bool = False
    teaching: Teaching | None = None
    purity_forecast: float | None = None
    rate: Interval | None = None
    few_shot: Gain | None = None
    demonstration_rate: Interval | None = None
    pass_n: Interval | None = None
    rewarded_in_part: int | None = None
    tried: tuple[Tried, ...] = ()
    teacher: TeacherSeen | None = None
    goal: Goal | None = None
    goal_rate: Interval | None = None
    costs: dict[str, float] = {}
    left: float | None = None
    hintable: int | None = None


class Teaching(Record, frozen=True, kw_only=True):
    """What a teacher has that the student lacks, on the same dev tasks. ``gap`` is the teacher over the student.

    Of the tasks that the student passed in none of its ``student_tries`` it lacks ``lacks``; ``solves`` of these the teacher passed at least once. Of the
    teacher's ``tries`` ``silent`` said nothing at all.
    """

    teacher: str
    teacher_rate: Interval
    student_rate: Interval
    gap: Gain
    student_tries: int
    lacks: int
    solves: int
    tries: int
    silent: int = 0


class Worked(Record, frozen=True, kw_only=True):
    """What one try of an agent at a dev task brings, and what it takes: means over ``tries``, those of models that it chose from included.

    ``seconds`` are those in which an engine here, or a call, was at work for it, over all tries at once, in the command that finished them; NaN where
    none was. ``dollars`` are NaN where a price is unknown.
    """

    who: str
    rate: Interval
    tries: int
    turns: float
    prompt_tokens: float
    sampled_tokens: float
    seconds: float
    dollars: float


class Distilled(Record, frozen=True, kw_only=True):
    """``distillation.json`` of a rung: teacher, student ``before`` and student ``after`` on the same dev tasks.

    ``gained`` is the student after over before, ``over`` the student after over its teacher. ``kept`` is the share of the teacher's gain that the student
    has (over 1: more), ``tokens`` the tokens of one of its tries over those of one of the teacher's; both by family, NaN where undefined.
    ``teaching`` is what the teacher's tries to learn from cost.
    """

    teacher: Worked
    before: Worked
    after: Worked
    gap: Gain
    gained: Gain
    over: Gain
    kept: Interval
    tokens: Interval
    teaching: Spent = Spent()


class Use(Record, frozen=True, kw_only=True):
    """One tool, or one verb of a game: the ``share`` of tries that use it."""

    name: str
    share: Interval


class Behaviour(Record, frozen=True, kw_only=True):
    """How an agent goes about tasks. ``measures`` by the names in ``behaviour.MEASURES``, each a mean over tasks; NaN where nothing tells.

    ``errors`` of the ``tries`` broke and are in no other number. ``uses`` are the commonest tools or verbs, ``others`` counts those not listed.
    ``faults`` counts the failing tries by their class (``behaviour.FAULTS``).
    """

    agent: str
    tries: int
    errors: int
    tasks: int
    pass_rate: Interval
    measures: dict[str, Interval]
    uses: tuple[Use, ...] = ()
    others: int = 0
    faults: dict[str, int] = {}


class Pair(Record, frozen=True, kw_only=True):
    """Two acts in a row (``open → take``), and the share of all pairs that they are of each of two agents, in [0, 1]."""

    acts: str
    one: float
    other: float


class Divergence(Record, frozen=True, kw_only=True):
    """How far the pairs of acts of two agents are apart: Jensen-Shannon divergence in bits, in [0, 1].

    ``between`` the two, ``within`` two halves of the first's own tries, which is what chance alone gives at this size, and ``excess`` of the one over
    the other: the number to read. ``halves`` are ``tries`` of the same tasks, or ``tasks`` where the first has one try of each. ``pairs`` differ most.
    """

    between: Interval
    within: Interval
    excess: Interval
    halves: Literal["tries", "tasks"]
    pairs: tuple[Pair, ...] = ()


Alike = Literal["like", "unlike", "open"]


class Shift(Record, frozen=True, kw_only=True):
    """One measure of the student after training, task by task less the teacher's (``from_teacher``) and its own before (``from_before``).

    ``margin`` is the smallest difference of interest. ``alike``: whether it is the teacher's, by the rule in ``Transfer.rule``.
    """

    measure: str
    from_teacher: Interval
    from_before: Interval
    margin: float
    alike: Alike


class Transfer(Record, frozen=True, kw_only=True):
    """``behaviour.json`` of a rung: what a teacher's student took over, beside its pass rate.

    ``gain`` is the student's pass@1 after training less the teacher's, on the tasks that both played; it is decided at 90 %, for the test of being alike.
    ``apart`` compares the teacher with the student after training, ``apart_before`` with it before. ``passes`` and ``behaves`` say whether the student is
    like its teacher, ``flags`` what a reader must not overlook, ``rule`` how it is told.

    ``trained`` is None where the tasks are dev tasks. Where the teacher are demonstrations it counts the tasks, of those played, whose demonstrations
    trained the student: then this says what was copied, not how well it generalises.
    """

    teacher: Behaviour
    before: Behaviour
    after: Behaviour
    gain: Gain
    shifts: tuple[Shift, ...]
    apart: Divergence
    apart_before: Divergence
    passes: Alike
    behaves: Alike
    flags: tuple[str, ...]
    rule: str
    trained: int | None = None


class FaultRate(Record, frozen=True, kw_only=True):
    """One class of failure: the share of tries of each agent that end so, and the student's change from before to after."""

    fault: str
    shares: dict[str, Interval]
    change: Interval


class AtEqualRate(Record, frozen=True, kw_only=True):
    """Of all tries on ``tasks``, the share that fails in the class of a failing try of the teacher: the ``student``'s, and what the ``others``' would be,
    were it to pass each task as often as the student does (direct standardization; Kitagawa 1955).

    The tasks are those that the teacher and the other fail, each at least once, every task counting once; the student may pass them, which counts for 0 on both
    sides. ``outside`` are those that the teacher fails and the other never does: of these nothing is known of how the other fails.
    """

    tasks: int
    outside: int
    student: Interval
    others: Interval
    difference: Interval


class SameFault(Record, frozen=True, kw_only=True):
    """How often the student fails as its teacher does, beside ``other``: ``at_equal_rate`` on the tasks that the teacher fails (None in older files).

    And of failing tries alone: the chance that one of each is of the same class, on ``tasks`` where the teacher, the student and the other fail, each at least
    once, every task counting once. No pass rates are matched there. ``passes`` are pass rates on all tasks that the teacher fails.
    """

    other: str
    tasks: int
    student: Interval
    others: Interval
    difference: Interval
    passes: dict[str, Interval]
    at_equal_rate: AtEqualRate | None = None


class NewFault(Record, frozen=True, kw_only=True):
    """A class of failure that the student did not show on this task and now shows: ``counts`` are (tries of the class, tries) of each agent.

    ``trajectories`` hold one try of each agent, without token ids: the student's that fails so, and of the others the nearest thing to compare it with.
    """

    task: str
    fault: str
    counts: dict[str, tuple[int, int]]
    trajectories: dict[str, Trajectory]


class Faults(Record, frozen=True, kw_only=True):
    """``faults.json`` of a rung: which classes of failure there are, which came along from the teacher, and which are new, ``many`` of them in all."""

    rates: tuple[FaultRate, ...]
    same: tuple[SameFault, ...]
    new: tuple[NewFault, ...]
    many: int


class Filtered(Record, frozen=True, kw_only=True):
    """``filtered.json`` of a rung: what leaving known faults out (``selection.behaviour``) came to, one rate for each rule that is set.

    Shares are of tries that break the rule: ``sampled`` of all that there was to choose from (of an adaptive budget, the first wave), ``passing`` of what
    passes among it, ``trains`` of what trains, at other tasks than ``before`` and ``after``: what stood (``base``) and the rung (``other``) on dev.
    """

    base: str
    other: str
    rates: tuple[FaultRate, ...]


Facet = Literal["pass@k", "distinct", "solutions", "tokens", "off-task"]


class Change(Record, frozen=True, kw_only=True):
    """One facet of diversity: ``after`` a round less ``before`` it, task by task on the tasks that both sides can be measured on, by family.

    ``words`` say what it is, ``unit`` in what: a share of tasks, a number of solutions, or nats. ``printed`` is the difference at 95 %, ``deciding`` at
    the level of the round's gain. ``spare``, at that level, is ``after`` less as much of ``before`` as has to stay: surely too much is lost where all of
    it is under 0. ``why`` says why all is undefined (NaN), "" where it is not.
    """

    facet: Facet
    words: str
    unit: Literal["share", "solutions", "nats"]
    before: Interval
    after: Interval
    printed: Interval
    deciding: Interval
    spare: Interval
    why: str = ""


class Diversity(Record, frozen=True, kw_only=True):
    """``diversity.json`` of a rung: what it did to how many ways there are, beside ``base``, what stood before. ``notes`` say what its tries cannot show."""

    base: str
    other: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


Action = Literal[
    "ship",  # what stands
    "few-shot",
    "sft",
    "rejection-sampling",
    "expert-iteration",
    "retry",  # the last round, in another way
    "distillation",
    "label",  # or another verifier: nothing may train on this one's word yet
    "measure",  # more, since what is known decides nothing
    "rl",
    "curriculum",  # or a new teacher, or hints
]


class Reason(Record, frozen=True, kw_only=True):
    """Why: what was ``measured``, with its interval where it has one, and the ``threshold`` it was held against, a setting's where ``setting`` names one."""

    says: str
    measured: str
    threshold: str
    interval: Interval | None = None
    setting: str = ""


class Option(Record, frozen=True, kw_only=True):
    """One thing that could be done next. ``standing``: ``advised``, ``open`` until something is measured or settled, ``done``, or ``refused``.

    ``gain`` is what it would probably add to pass@1 (None: not known), ``cost`` what it would take, ``changes`` what would change what is said of it.
    """

    action: Action
    standing: Literal["advised", "open", "done", "refused"]
    reason: Reason
    gain: Interval | None = None
    cost: float | None = None
    changes: str = ""
    how: tuple[str, ...] = ()


class Advice(Record, frozen=True, kw_only=True):
    """What to do next, and what else: ``options`` holds every action that was weighed, these two among them."""

    recommendation: Option
    runner_up: Option | None
    options: tuple[Option, ...]
    notes: tuple[str, ...] = ()
