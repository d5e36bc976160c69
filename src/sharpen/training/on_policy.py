"""On-policy distillation: the student samples, and a teacher scores every token of it. TRL's trainers, in a process of their own.

Learnt from what the student itself does, its own errors are corrected, which a teacher's finished trajectories never show (Agarwal et al., "On-Policy
Distillation of Language Models", 2024). It asks more of a teacher than ``trajectories`` does: its weights, here, and a prompt that it reads as the
student does. Each condition that is not met is refused in one line. What it does not do: turns after the first, servers, checkpoints.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from sharpen import loop
from sharpen.chat.names import unmarked
from sharpen.chat.template import ChatTemplate
from sharpen.errors import ModelError, Refused, SettingsError
from sharpen.models import open_folder, read_config
from sharpen.records import Lineage, Message, Model, Record, TrainingReport
from sharpen.tasks.base import TaskSet
from sharpen.terms import TermsSettings, maker_of, merged, root_of, settled, vouch
from sharpen.training.base import Progress, Training, Work
from sharpen.training.process import name_of, reported, work_in_process

# Rates and steps that Thinking Machines give for their "On-Policy Distillation" (2025), in the tinker-cookbook's recipe.
DEFAULT_RATES = {"lora": 1e-4, "full": 5e-5}
INSTEAD = "use way: trajectories, which needs no more of a teacher than its answers"

Way = Literal["distillation", "gold"]


class OnPolicy(Record, frozen=True, kw_only=True):
    """How a student is distilled on its own samples. How its weights change (LoRA or full, precision, schedule, seed) is said by ``training``.

    A step samples ``batch_size`` answers, over all processes, of at most ``max_new_tokens`` tokens at ``temperature`` (over 0), which is also that of
    the loss. ``learning_rate`` is the peak (None: by method, see ``DEFAULT_RATES``).

    ``beta``, in [0, 1], chooses the divergence: 0 is KL(teacher || student), which covers all that the teacher may say, 1 the reverse, which seeks what
    it says most (Thinking Machines), between them a generalised Jensen-Shannon divergence. ``lmbda``, over 0 and at most 1, is the share of
    micro-batches that the student samples; on the others it learns from the teacher's own answers. GKD gains where the student's share is over a quarter.

    ``trainer``: "distillation" is TRL's DistillationTrainer, for one vocabulary and all on-policy; "gold" its GOLDTrainer, which aligns tokens of two
    vocabularies by their bytes, and mixes. "auto" takes the first where it can.
    """

    steps: int = 100
    batch_size: int = 16
    learning_rate: float | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    beta: float = 1.0
    lmbda: float = 1.0
    trainer: Literal["auto", "distillation", "gold"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise SettingsError(f"learning_rate is {self.learning_rate}, but must be over 0")
        if self.temperature <= 0:
            raise SettingsError(f"temperature is {self.temperature}, but must be over 0: the loss is taken at it")
        if not 0 <= self.beta <= 1:
            raise SettingsError(f"beta is {self.beta}, but must be 0 (forward KL) to 1 (reverse KL)")
        if not 0 < self.lmbda <= 1:
            raise SettingsError(
                f"lmbda is {self.lmbda}, but is the share that the student samples: over 0 and at most 1; for none, {INSTEAD}"
            )
        if self.lmbda < 1 and self.trainer == "distillation":
            raise SettingsError(f"lmbda is {self.lmbda}, but TRL's DistillationTrainer is all on-policy; set lmbda: 1 or trainer: gold")


class Prompt(Record, frozen=True, kw_only=True):
    """What the student is asked to answer. ``key`` names the task; ``messages`` end with anything but an assistant turn.

    ``answer`` is the teacher's own, for the share that is not on-policy ("": none).
    """

    key: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    answer: str = ""


class Asked(Record, frozen=True, kw_only=True):
    """A prompt as the models read it: ``ids`` of the student, and the same as ``text``; ``answer`` is rendered too, its end token included."""

    ids: tuple[int, ...]
    text: str
    answer: str = ""


class Distilling(Work, frozen=True, kw_only=True):
    """What the training process is asked to do. ``teacher`` is a folder, ``teacher_name`` its name; ``asked`` holds the prompts of all steps in order,
    ``on_policy.batch_size`` a step, and none is longer than ``longest`` with its answer; ``end_ids`` end a student's turn."""

    teacher: str
    teacher_name: str
    on_policy: OnPolicy
    way: Way
    one_vocabulary: bool
    rate: float
    asked: tuple[Asked, ...]
    longest: int
    end_ids: tuple[int, ...]


class Fit(Record, frozen=True, kw_only=True):
    """How student, teacher and prompts go together: by which trainer and ``why``, the prompts as read, and why others were left out."""

    way: Way
    one_vocabulary: bool
    why: str
    asked: tuple[Asked, ...]
    longest: int
    left_out: dict[str, int]
    end_ids: tuple[int, ...]


def openings(tasks: TaskSet) -> tuple[Prompt, ...]:
    """What opens each task, as a prompt. Refused where an answer does not end the task: TRL's trainers do not play environments."""
    if tasks.environment.max_turns > 1:
        raise Refused(
            f"on-policy distillation samples one answer to one prompt, but tasks of {tasks.name!r} take up to {tasks.environment.max_turns} turns; {INSTEAD}"
        )

    async def opened() -> list[Prompt]:
        prompts = []
        for task in tasks.tasks:
            episode, messages = await tasks.environment.start(task)
            prompts.append(Prompt(key=task.key, messages=messages, tools=episode.tools))
            await episode.close()
        return prompts

    return tuple(loop.run(opened()))


def train_on_policy(
    student: Model,
    teacher: Model,
    prompts: Sequence[Prompt],
    settings: OnPolicy,
    out: Path,
    *,
    training: Training | None = None,
    terms: Sequence[TermsSettings] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Model, TrainingReport]:
    """Train ``student`` on its own answers to ``prompts``, scored by ``teacher``, into the folder ``out``: merged weights, tokenizer, template, lineage.

    ``terms`` settle whether a teacher outside the student's lineage may: Unsettled where they do not; the new model inherits them.

    Of ``training``, epochs, batch size and learning rate are not used, since ``settings`` says them. In the report ``trained_tokens`` counts the
    scored tokens, ``tokens`` their prompts too, and ``losses`` are mean divergences in nats a token (GOLD's mix in a distance between sorted
    probabilities). The log is ``train.log`` beside ``out``. Refused where a condition is not met, see ``fit``; TrainingError and StorageError as in
    ``sft.train``; ``out`` is then as it was before. A failing or interrupted ``on_progress`` ends the training.
    """
    started = time.monotonic()
    maker = settled(maker_of(teacher), terms)
    vouch(maker, student, f"the probabilities of the teacher {teacher.name}")
    job = prepare(student, teacher, prompts, settings, out, training or Training())
    lineage = msgspec.structs.replace(job.lineage, root=root_of(student), terms=merged(student.lineage.terms, maker.terms))
    job = msgspec.structs.replace(job, lineage=lineage)
    lines = work_in_process("sharpen.training.on_policy_worker", job, on_progress)
    tokens, scored = sum(line.tokens for line in lines), sum(line.trained_tokens for line in lines)
    return open_folder(out), reported(lines, started, steps=settings.steps, tokens=tokens, trained_tokens=scored)


def prepare(student: Model, teacher: Model, prompts: Sequence[Prompt], settings: OnPolicy, out: Path, training: Training) -> Distilling:
    """The job for the process: prompts as read, in the order of the steps. Refused as ``fit`` refuses."""
    pair = fit(student, teacher, prompts, settings, training)
    order = plan_prompts(len(pair.asked), settings.steps, settings.batch_size, training.seed)
    asked = tuple(pair.asked[index] for index in order)
    learnt = hashlib.sha256(msgspec.json.encode([teacher.fingerprint, asked])).hexdigest()
    how = msgspec.to_builtins(training) | {
        "on_policy": {
            **msgspec.to_builtins(settings),
            "teacher": teacher.name,
            "teacher_fingerprint": teacher.fingerprint,
            "trainer": pair.way,
            "why": pair.why,
            "prompts": len(pair.asked),
            "left_out": pair.left_out,
        }
    }
    return Distilling(
        model=student.path,
        start=student.name,
        out=str(out),
        name=name_of(out),
        lineage=Lineage(base=student.lineage.base, parent=student.fingerprint, training_set=learnt, settings=how),
        settings=training,
        teacher=teacher.path,
        teacher_name=teacher.name,
        on_policy=settings,
        way=pair.way,
        one_vocabulary=pair.one_vocabulary,
        rate=DEFAULT_RATES[training.method] if settings.learning_rate is None else settings.learning_rate,
        asked=asked,
        longest=pair.longest,
        end_ids=pair.end_ids,
    )


def plan_prompts(count: int, steps: int, batch_size: int, seed: int) -> list[int]:
    """Indices of prompts, ``batch_size`` a step: each epoch is shuffled anew and ends anywhere in a step, so few prompts fill a large batch too."""
    draw, order = random.Random(seed), list[int]()
    while len(order) < steps * batch_size:
        epoch = list(range(count))
        draw.shuffle(epoch)
        order += epoch
    return order[: steps * batch_size]


# ---------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Side:
    """Student or teacher: what is read of it before any weight is."""

    model: Model
    template: ChatTemplate
    config: dict[str, Any]

    @classmethod
    def of(cls, model: Model) -> Side:
        return cls(model, ChatTemplate.load(model.path), read_config(model.path))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token, added ones included, with its id."""
        return dict(self.template.tokenizer.get_vocab())

    @property
    def rows(self) -> int:
        """Rows of the embedding: often more than there are tokens."""
        rows = self.config.get("vocab_size", self.config.get("text_config", {}).get("vocab_size"))
        if not isinstance(rows, int):
            raise ModelError(f"{self.model.path}/config.json does not say its vocab_size")
        return rows

    def encoded(self, text: str) -> list[int]:
        """``text`` as TRL encodes it: whatever looks like a control token is one."""
        return list(self.template.tokenizer.encode(text, add_special_tokens=False))


def fit(student: Model, teacher: Model, prompts: Sequence[Prompt], settings: OnPolicy, training: Training) -> Fit:
    """Whether ``teacher`` can score what ``student`` samples, and by which trainer. Reads tokenizers and configs, no weights.

    Refused where the teacher's weights are not here or are the student's own, where it would read the prompts in another form than its own, where
    the vocabularies differ in a way that no trainer bridges, and where no prompt is left. ModelError where a folder cannot be read.
    """
    _check_weights(student, teacher)
    if not prompts:
        raise Refused("on-policy distillation has no prompt to sample answers to; give it the tasks of the train split")
    ours, theirs = Side.of(student), Side.of(teacher)
    read, left_out = _ask(ours, theirs, prompts, settings, training)
    texts = [one.text for one, _ in read]
    different = vocabulary_difference(ours, theirs, texts)
    way: Way = "gold" if settings.trainer == "gold" or settings.lmbda < 1 or (different and settings.trainer == "auto") else "distillation"
    if way == "distillation" and different:
        raise Refused(f"TRL's DistillationTrainer needs one vocabulary, but {different}; set trainer: gold, or {INSTEAD}")
    if way == "gold" and different:
        _check_alignable(ours, theirs, texts)
    asked = [one for one, plain in read if plain or way == "distillation"]  # GOLD is given text
    if len(asked) < len(read):
        left_out["with the name of a control token in their text"] = len(read) - len(asked)
    if not asked:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise Refused(f"on-policy distillation has no prompt left of {len(prompts)}: {reasons}")
    why = different or (
        "they share one vocabulary" if way == "distillation" else f"trainer is {settings.trainer}, lmbda {settings.lmbda:g}"
    )
    return Fit(
        way=way,
        one_vocabulary=not different,
        why=why,
        asked=tuple(asked),
        longest=max(len(one.ids) for one in asked) + settings.max_new_tokens,
        left_out=dict(left_out),
        end_ids=tuple(sorted(ours.template.end_ids)),
    )


def _check_weights(student: Model, teacher: Model) -> None:
    if student.kind != "pretrained":
        raise ModelError(f"{student.name} is a {student.kind} model and cannot be trained here; name a local folder or a hub id as model")
    if teacher.kind == "endpoint":
        raise Refused(
            f"on-policy distillation needs the teacher's probability of every token, which the endpoint {teacher.name} does not give; "
            f"name the teacher's weights (a folder or a hub id), or {INSTEAD}"
        )
    if teacher.kind != "pretrained":
        raise Refused(f"the {teacher.kind} teacher {teacher.name} gives no probabilities of tokens; {INSTEAD}")
    if teacher.fingerprint == student.fingerprint:
        raise Refused(
            f"teacher and student are the same weights ({teacher.name}), so there is nothing to score; name a stronger teacher, or, "
            "to distil best-of-n of a model into itself, use way: trajectories"
        )


def _ask(
    ours: Side, theirs: Side, prompts: Sequence[Prompt], settings: OnPolicy, training: Training
) -> tuple[list[tuple[Asked, bool]], Counter[str]]:
    """The prompts as the student reads them, without those that cannot be used, each with whether its bare text reads the same to both.

    Refused where the teacher's own template would write one otherwise.
    """
    windows = [config.get("max_position_embeddings") for config in (ours.config, theirs.config)]
    room = min(training.max_length, *(window for window in windows if isinstance(window, int))) - settings.max_new_tokens
    asked, left_out = list[tuple[Asked, bool]](), Counter[str]()
    for prompt in prompts:
        if settings.lmbda < 1 and not prompt.answer:
            left_out["without an answer of the teacher, which lmbda under 1 learns from"] += 1
            continue
        answered = (*prompt.messages, Message(role="assistant", content=prompt.answer or "An answer."))
        text = ours.template.render(prompt.messages, prompt.tools)
        closed = ours.template.render(answered, prompt.tools, answered=True)
        their_text = _rendered(theirs.template, prompt.messages, prompt.tools)
        their_closed = _rendered(theirs.template, answered, prompt.tools, answered=True)
        if (unmarked(text), unmarked(closed)) != (unmarked(their_text), unmarked(their_closed)):
            raise Refused(
                f"the chat templates of {ours.model.name} and {theirs.model.name} write task {prompt.key!r} differently, so the teacher would score "
                f"a conversation in a form that is not its own; give both one template (template: FILE.jinja), or {INSTEAD}"
            )
        ids = ours.template.encode(text)
        if len(ids) > room:
            left_out[f"longer than {max(room, 0)} tokens, which is all that on_policy.max_new_tokens leaves"] += 1
            continue
        answer = _answer(ours.template, text, closed) if settings.lmbda < 1 else ""
        if len(ours.encoded(answer)) > settings.max_new_tokens:
            left_out["with an answer longer than on_policy.max_new_tokens"] += 1
            continue
        bare = unmarked(text)
        plain = ours.encoded(bare) == ids and theirs.encoded(bare) == theirs.template.encode(their_text)
        asked.append((Asked(ids=tuple(ids), text=bare, answer=answer), plain))
    return asked, left_out


def _rendered(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, answered: bool = False) -> str:
    """As ``render``, and "" where the template cannot: that, too, is another form."""
    try:
        return template.render(messages, tools, answered=answered)
    except ModelError:
        return ""


def _answer(template: ChatTemplate, opened: str, closed: str) -> str:
    """The text of an answer up to its end token, that included. ModelError where the template rewrites the prompt once it is answered."""
    if not closed.startswith(opened):
        raise ModelError(f"the chat template of {template.name} rewrites a prompt once it is answered; set on_policy.lmbda: 1")
    ids = template.encode(closed[len(opened) :])
    end = next((at for at, token in enumerate(ids) if token in template.end_ids), len(ids) - 1)
    return template.decode(ids[: end + 1])


def vocabulary_difference(ours: Side, theirs: Side, texts: Sequence[str]) -> str:
    """Why a token id does not mean the same to both, in words; "" where it does.

    Token by token, added ones included; then by what the tokenizers make of ``texts``, since they may cut alike vocabularies differently; then by the
    rows of the embeddings. A teacher may have more rows than tokens: those beyond the student's are never used and are cut off.
    """
    both, mine, other = f"{ours.model.name} and {theirs.model.name}", ours.vocabulary, theirs.vocabulary
    if mine != other:
        odd = sorted({token for token, _ in mine.items() ^ other.items()}, key=lambda token: (mine.get(token, 0), token))
        return f"{len(odd)} tokens of {both} differ, {odd[0]!r} first"
    if any(ours.encoded(text) != theirs.encoded(text) for text in texts):
        return f"the tokenizers of {both} cut the same text into other tokens"
    if theirs.rows < ours.rows:
        return f"{ours.model.name} has {ours.rows} rows of embeddings and {theirs.model.name} has {theirs.rows}"
    return ""


def _check_alignable(ours: Side, theirs: Side, texts: Sequence[str]) -> None:
    """Refused where the tokenizers do not work on bytes or share no token, or the teacher's adds to a prompt."""
    for side in (ours, theirs):
        # As TRL tells them; it aligns tokens by the bytes that they stand for.
        backend = getattr(side.template.tokenizer, "backend_tokenizer", None)
        if backend is None or "ByteLevel" not in repr(backend.pre_tokenizer) + repr(backend.decoder):
            raise Refused(f"TRL's GOLDTrainer aligns byte-level tokenizers only, and that of {side.model.name} is none; {INSTEAD}")
    if not ours.vocabulary.keys() & theirs.vocabulary.keys():
        raise Refused(f"{ours.model.name} and {theirs.model.name} share no token, so nothing can be aligned; {INSTEAD}")
    if any(list(theirs.template.tokenizer(text)["input_ids"]) != theirs.encoded(text) for text in texts):
        raise Refused(f"the tokenizer of {theirs.model.name} adds a token to a prompt that is already rendered; {INSTEAD}")
