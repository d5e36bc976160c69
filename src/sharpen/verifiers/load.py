"""Which verifier judges: one tagged union, one function.

A new kind takes a settings record (a ``Common``, ``tag_field="verifier"``), a class with ``name``, ``exact``, ``properties``, ``problem`` and
``verify``, a place in ``VerifierSettings``, a line in ``PROPERTIES`` and one in ``load_verifier``.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, get_args

import msgspec

from sharpen import plugins
from sharpen.errors import SettingsError, nearest
from sharpen.records import Record
from sharpen.verifiers.answer import Choice, ChoiceVerifier, Exact, ExactVerifier, Numeric, NumericVerifier
from sharpen.verifiers.base import Described, Properties
from sharpen.verifiers.behaviour import Behaved, BehaviourVerifier
from sharpen.verifiers.code import Code, CodeVerifier
from sharpen.verifiers.combine import KINDS, Combination
from sharpen.verifiers.function import Function, FunctionVerifier, function_verifier
from sharpen.verifiers.json import Json, JsonVerifier
from sharpen.verifiers.judge import Judge, LLMJudge
from sharpen.verifiers.math import Math, MathVerifier
from sharpen.verifiers.outcome import EnvironmentOutcome
from sharpen.verifiers.regex import Regex, RegexVerifier
from sharpen.verifiers.reward_model import RewardModel, RewardModelVerifier
from sharpen.verifiers.sql import Sql, SqlVerifier


class Outcome(Record, frozen=True, kw_only=True, tag_field="verifier", tag="environment"):
    """The environment's own word. See ``EnvironmentOutcome``."""


class Combined(Record, frozen=True, kw_only=True):
    """``of``: two verifiers or more, each given as ``tasks.verifier`` is. See ``Combination``."""

    of: tuple[VerifierSettings | str, ...]

    def __post_init__(self) -> None:
        if len(self.of) < 2:
            raise SettingsError(f"of names {len(self.of)} verifiers, but a combination needs two or more")


class All(Combined, frozen=True, kw_only=True, tag_field="verifier", tag="all"):
    """Passes where every member passes."""


class AnyOf(Combined, frozen=True, kw_only=True, tag_field="verifier", tag="any"):
    """Passes where one member passes."""


class KOf(Combined, frozen=True, kw_only=True, tag_field="verifier", tag="k_of"):
    """Passes where ``k`` members or more pass."""

    k: Annotated[int, msgspec.Meta(ge=1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > len(self.of):
            raise SettingsError(f"k is {self.k}, but of names {len(self.of)} verifiers; lower k")


VerifierSettings = (
    Outcome | Function | Exact | Numeric | Choice | Json | Regex | Math | Sql | Code | Behaved | Judge | RewardModel | All | AnyOf | KOf
)

# What each says of itself, by its tag: the table in docs/verifiers.md.
PROPERTIES: dict[str, Properties] = {
    "environment": EnvironmentOutcome.properties,
    "function": FunctionVerifier.properties,
    "exact": ExactVerifier.properties,
    "numeric": NumericVerifier.properties,
    "choice": ChoiceVerifier.properties,
    "json": JsonVerifier.properties,
    "regex": RegexVerifier.properties,
    "math": MathVerifier.properties,
    "sql": SqlVerifier.properties,
    "code": CodeVerifier.properties,
    "behaviour": BehaviourVerifier.properties,
    "judge": LLMJudge.properties,
    "reward_model": RewardModelVerifier.properties,
    "all": KINDS,
    "any": KINDS,
    "k_of": KINDS,
}


def load_verifier(settings: VerifierSettings | str) -> Described:
    """The verifier that ``settings`` describe; a string is a tag, or names a function as ``Function.function`` does.

    SettingsError, one line, where there is none, a function cannot be found, or a library is missing.
    """
    match settings:
        case str():
            return load_verifier(named(settings))
        case Outcome():
            return EnvironmentOutcome()
        case Function():
            return function_verifier(settings)
        case Exact():
            return ExactVerifier(settings)
        case Numeric():
            return NumericVerifier(settings)
        case Choice():
            return ChoiceVerifier(settings)
        case Json():
            return JsonVerifier(settings)
        case Regex():
            return RegexVerifier(settings)
        case Math():
            return MathVerifier(settings)
        case Sql():
            return SqlVerifier(settings)
        case Code():
            return CodeVerifier(settings)
        case Behaved():
            return BehaviourVerifier(settings)
        case Judge():
            return LLMJudge(settings)
        case RewardModel():
            return RewardModelVerifier(settings)
        case All(of=of):
            return Combination("all", tuple(map(load_verifier, of)), len(of))
        case AnyOf(of=of):
            return Combination("any", tuple(map(load_verifier, of)), 1)
        case KOf(of=of, k=k):
            return Combination("k_of", tuple(map(load_verifier, of)), k)


def named(name: str) -> VerifierSettings:
    """The settings that a name alone stands for: a tag's defaults, or a function."""
    tags = {str(kind.__struct_config__.tag): kind for kind in get_args(VerifierSettings)}
    offered = {point.name for point in importlib.metadata.entry_points(group=plugins.GROUPS["verifier"])}
    if name in tags:
        try:
            alone: VerifierSettings = msgspec.convert({"verifier": name}, VerifierSettings)
            return alone
        except msgspec.ValidationError as error:
            raise SettingsError(f"verifier {name!r} needs more than its name: {error}") from None
    if ":" not in name and name not in offered:
        raise SettingsError(
            f"verifier {name!r} is none of sharpen's, neither module:name, file.py:name nor an entry point in the group "
            f"{plugins.GROUPS['verifier']}{nearest(name, [*tags, *offered])}"
        )
    return Function(function=name)
