"""The shipped fake: a policy that is a Python function, and a model folder whose whole weight is one number. No torch.

It is public. Test your environment or verifier with ``ScriptedPolicy``; try a whole ladder in seconds on a scripted model folder.
What it is not: a simulation of learning. A scripted model shows that the plumbing works and says nothing about a real one.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import math
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import msgspec

from sharpen.chat.scripted import END_ID, ScriptedTemplate
from sharpen.errors import ModelError, PolicyError
from sharpen.models import save_lineage
from sharpen.policies.base import Conversation, Sampling, Turn, turn_seed
from sharpen.policies.tokens import prompt_of, turn_of
from sharpen.records import Lineage, Model, Record

Reply = Callable[[Conversation, random.Random], str]


class Scripted(Record, frozen=True, kw_only=True, tag_field="engine", tag="scripted"):
    """Settings of the scripted engine. ``context`` is the longest prompt plus answer, in tokens (bytes)."""

    context: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20


class ScriptedPolicy:
    """Answers with ``reply(conversation, random)``, the random seeded from the conversation and, over temperature 0, the sampling seed."""

    gives_token_ids = True

    def __init__(self, reply: Reply, name: str = "scripted", settings: Scripted | None = None) -> None:
        self.name = name
        self.reply = reply
        self.context = (settings or Scripted()).context
        self.template = ScriptedTemplate(name)
        self._closed = False

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """The scripted turn, cut at ``max_tokens``. ContextOverflow over ``context``, PolicyError once closed."""
        if self._closed:
            raise PolicyError(f"the policy {self.name} is closed")
        await asyncio.sleep(0)  # let others run, as a real engine would
        prompt = prompt_of(self.template, conversation, sampling, self.context)
        seed = sampling.seed if sampling.temperature > 0 else 0
        text = self.reply(conversation, random.Random(turn_seed(seed, [_digest(repr(prompt))])))
        output = [*text.encode(), END_ID][: sampling.max_tokens]
        return turn_of(self.template, conversation, prompt, output)

    async def close(self) -> None:
        self._closed = True


# ---------------------------------------------------------------- scripted model folders


class ScriptedWeights(Record, frozen=True, kw_only=True):
    """``scripted.json``: the chance, in [0, 1], of a right answer to arithmetic, and answers learned by heart (by message digest)."""

    skill: Annotated[float, msgspec.Meta(ge=0, le=1)]
    learned: dict[str, str] = {}


def scripted_model(path: str | Path, skill: float, name: str = "scripted") -> None:
    """Write a scripted base model into the folder ``path``, with ``skill`` in [0, 1]."""
    _write(Path(path), ScriptedWeights(skill=skill))
    save_lineage(Path(path), Lineage(base=name), name)


def open_scripted(model: Model, settings: Scripted | None = None) -> ScriptedPolicy:
    """The policy of a scripted model folder. ModelError where ``scripted.json`` cannot be read."""
    weights = _read(Path(model.path))

    def reply(conversation: Conversation, rng: random.Random) -> str:
        question = next((m.content for m in reversed(conversation.messages) if m.role == "user"), "")
        if (known := weights.learned.get(_digest(question))) is not None:
            return known
        if (value := arithmetic(question)) is None:
            return "I do not know."
        right = rng.random() < weights.skill
        return _number(value if right else value + rng.choice((-3, -2, -1, 1, 2, 3)))

    return ScriptedPolicy(reply, model.name, settings)


def learn(model_path: Path, pairs: Sequence[tuple[str, str]], out: Path, scale: float = 50.0) -> None:
    """The fake trainer: ``pairs`` are (last user message, answer); writes a scripted model to ``out``. Deterministic, instant.

    The skill grows with the distinct questions answered rightly, ``1 - (1 - skill) * exp(-right / scale)``, and shrinks by
    ``exp(-wrong / scale)`` with those answered wrongly; the most frequent answer to each question is learned by heart, right or wrong.
    """
    old = _read(model_path)
    answers: dict[str, Counter[str]] = {}
    right: set[str] = set()
    wrong: set[tuple[str, str]] = set()
    for question, answer in pairs:
        answers.setdefault(question, Counter())[answer] += 1
        if (value := arithmetic(question)) is not None:
            if _stated(answer) == value:
                right.add(question)
            else:
                wrong.add((question, answer))
    learned = {_digest(question): min(counts, key=lambda a: (-counts[a], a)) for question, counts in answers.items()}
    skill = (1 - (1 - old.skill) * math.exp(-len(right) / scale)) * math.exp(-len(wrong) / scale)
    _write(out, ScriptedWeights(skill=skill, learned=dict(sorted((old.learned | learned).items()))))


_EXPRESSION = re.compile(r"[-(\s]*\d[\d\s()+*/-]{0,500}")
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def arithmetic(text: str) -> Fraction | None:
    """The value of the longest arithmetic expression (+ - * / and parentheses, whole numbers) in ``text``; None where there is none."""
    spans = sorted((m.group().strip() for m in _EXPRESSION.finditer(text)), key=len, reverse=True)
    for span in spans:
        try:
            tree = ast.parse(span, mode="eval").body
            if isinstance(tree, ast.BinOp | ast.UnaryOp):
                return _value(tree)
        except (SyntaxError, ZeroDivisionError, ValueError):
            continue
    return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
    raise ValueError("not plain arithmetic")


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else str(float(value))


def _stated(answer: str) -> Fraction | None:
    """The last number in an answer."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", answer)
    return Fraction(numbers[-1]) if numbers else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> ScriptedWeights:
    try:
        return msgspec.json.decode((path / "scripted.json").read_bytes(), type=ScriptedWeights)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path}/scripted.json cannot be read: {error}") from error


def _write(path: Path, weights: ScriptedWeights) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "scripted.json").write_bytes(msgspec.json.format(msgspec.json.encode(weights), indent=1))
