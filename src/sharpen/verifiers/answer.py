"""Short answers: a text that must be equal, a number, a letter."""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal, InvalidOperation, localcontext
from typing import Annotated, Literal

import msgspec

from sharpen.errors import SettingsError
from sharpen.records import Task, Trajectory, Verdict
from sharpen.verifiers.base import Properties, name_of, says, shown, texts
from sharpen.verifiers.function import answer_of
from sharpen.verifiers.part import Reading, boxed, hedges, read

LONGEST = 100_000  # characters at the end of an answer that are looked at
MANY = 10  # an answer so many times as long as its reference is not it, whatever is ignored

# ---------------------------------------------------------------- the same text


class Exact(Reading, frozen=True, kw_only=True, tag_field="verifier", tag="exact"):
    """The answer is the reference, or one of a list of them, character for character once both are in Unicode's composed form (NFC).

    ``ignore``: ``case``; ``space``, all white space; ``punctuation``, but not a sign, point, comma, slash or colon before a digit nor a per
    cent sign after one, so that -5 is not 5 and 1.5 is not 15.
    """

    ignore: tuple[Literal["case", "space", "punctuation"], ...] = ()


class ExactVerifier:
    """See ``Exact``."""

    properties = Properties(
        needs="reference: a text or number, or a list of right ones",
        cost="free",
        gameable="with `after` or `last_line`, by an answer that says several things and the right one last; what is ignored",
        fails="any other text; no such part",
        errors="`after` takes longer than `timeout_s`",
    )

    def __init__(self, settings: Exact) -> None:
        self.name, self.exact, self._settings = name_of(settings), settings.exact, settings

    def problem(self, task: Task) -> str:
        try:
            right = texts(task)
        except SettingsError as error:
            return str(error)
        empty = [text for text in right if not normal(text, self._settings.ignore)]
        return (
            f"has the reference {shown(empty[0])}, of which nothing is left once {self.name} has ignored what it ignores" if empty else ""
        )

    def cheats(self, task: Task) -> dict[str, str]:
        return hedges(task)

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        right = {normal(text, self._settings.ignore) for text in texts(task)}
        said, missing = read(self._settings, answer_of(trajectory))
        if len(said) > MANY * max(map(len, right)) + LONGEST:
            said, missing = "", "far longer than the reference"
        passed = not missing and (said := normal(said, self._settings.ignore)) in right and said != ""
        return says(self.name, trajectory, passed, missing or f"{shown(said)} is not the reference")


_PUNCTUATION = re.compile(
    r"(?![-+.,/:](?=[0-9]))(?!(?<=[0-9])%)[!\"#%&'()*,\-./:;?@\[\\\]{}\u00ab\u00bb\u2018-\u201e\u2039\u203a\u2026\u2013\u2014\u00bf\u00a1\u00b7\u3001\u3002\u300a-\u300d]"
)


def normal(text: str, ignore: tuple[str, ...] = ()) -> str:
    """``text`` in the form in which ``Exact`` compares."""
    text = unicodedata.normalize("NFC", text).strip()
    if "punctuation" in ignore:
        text = _PUNCTUATION.sub("", text).strip()
    if "space" in ignore:
        text = "".join(text.split())
    return text.casefold() if "case" in ignore else text


# ---------------------------------------------------------------- a number


class Numeric(Reading, frozen=True, kw_only=True, tag_field="verifier", tag="numeric"):
    """The answer's number is the reference's, within ``tolerance`` (absolute) or ``relative`` (a share of the reference), whichever is wider.

    ``take``: the ``last`` number of the part that counts, or its ``only`` one: nothing else may stand there. Read are 7, -7, +7, 1,234.5 (commas
    only between groups of three), .5, 1e3, 1.5 x 10^3, 3/4, 1 1/2, \\frac{3}{4}, a currency sign before and a unit after, which is ignored, never
    converted. 50% is 0.5, or 50 with ``percent: as_written``. Not numbers: digits other than 0 to 9, 1,23, 2^10, 1 234, 1/0, NaN and infinity.
    Comparison is in decimal, so 0.1 is 0.1.
    """

    tolerance: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    relative: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    take: Literal["last", "only"] = "last"
    percent: Literal["hundredth", "as_written"] = "hundredth"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.tolerance):
            raise SettingsError(f"tolerance is {self.tolerance}, but every number is within it; give a finite one")


class NumericVerifier:
    """See ``Numeric``."""

    properties = Properties(
        needs="reference: a number, or a text that holds one",
        cost="free",
        gameable="with `take: last`, by naming many numbers and the likeliest last; any unit passes; a wide tolerance",
        fails="another number; none that can be read; NaN, infinity",
        errors="`after` takes longer than `timeout_s`",
    )

    def __init__(self, settings: Numeric) -> None:
        self.name, self.exact, self._settings = name_of(settings), settings.exact, settings

    def problem(self, task: Task) -> str:
        try:
            self._right(task)
        except SettingsError as error:
            return str(error)
        return ""

    def _right(self, task: Task) -> Decimal:
        given = task.reference
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            what = "no reference" if given is None else f"the reference {shown(given)}"
            raise SettingsError(f"has {what}, but numeric needs a number, or a text that is one; fill it in or drop the row")
        number = number_in(given if isinstance(given, str) else str(given), only=True, percent=self._settings.percent)
        if number is None:
            raise SettingsError(f"has the reference {shown(given)}, which cannot be read as one finite number; write it as one")
        return number

    def cheats(self, task: Task) -> dict[str, str]:
        return hedges(task)

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        right = self._right(task)
        said, missing = read(self._settings, answer_of(trajectory))
        number = None if missing else number_in(said, only=self._settings.take == "only", percent=self._settings.percent)
        if number is None:
            return says(self.name, trajectory, False, missing or f"{shown(said[-80:])} has no number that can be read")
        passed = close(number, right, self._settings.tolerance, self._settings.relative)
        return says(self.name, trajectory, passed, f"{number:.12g} is not {right:.12g}")


_DIGITS = r"[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+"
_PLAIN = rf"(?:{_DIGITS})(?:[eE][-+]?[0-9]+)?"
_TIMES = r"\s?(?:[x\u00d7*]|\\times|\\cdot)\s?10\s?\^\s?\{?\s?(?P<power>[-+]?[0-9]{1,5})\s?\}?"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}.])[-+])?[$€£¥]?"
    r"(?:\\d?frac\s?\{(?P<top>[-+]?[0-9]{1,400})\}\s?\{(?P<bottom>[0-9]{1,400})\}"
    rf"|(?:(?P<whole>[0-9]{{1,400}}) )?(?P<over>[0-9]{{1,400}})\s?/\s?(?P<under>[0-9]{{1,400}})(?![0-9]*[.,/][0-9])"
    rf"|(?P<plain>{_PLAIN})(?:{_TIMES})?)"
    r"\s?(?P<percent>\\?%)?"
)
# Where a number is part of something else: 2^10, 2**10, 1.2.3, 12/25/2024, 1 234, 3\u00bd, 4\u00b2, 0x10, 1_000.
_BEFORE = re.compile(r"[\^^]\s?\{?$|[\w)]\*\*$|\d[.,/]?$|\d $|[^\W\d]\d*[.,/]$")
_AFTER = re.compile(r"\^|\*\*[0-9(]|[.,/]\d|[^\W\d]?[\d_]|[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2079\u2150-\u215f]")
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " "})


def number_in(text: str, *, only: bool, percent: str) -> Decimal | None:
    """The last number of ``text``, or its only content; None where there is none or it cannot be read for sure."""
    text = text[-LONGEST:].translate(_MINUS).replace("{,}", ",").replace("\\!", "").strip()
    last: re.Match[str] | None = None
    for found in _NUMBER.finditer(text):
        before = text[: found.start()][-1:]
        if not (before.isalpha() or before == "_"):  # x2 and H2O hold no number
            last = found
    if last is None or (only and (text[: last.start()].strip("$*( \\[{") or text[last.end() :].strip("$*) .\\]}"))):
        return None
    return None if _BEFORE.search(text[: last.start()][-4:]) or _AFTER.match(text[last.end() :][:4]) else _value(last, percent)


def _value(found: re.Match[str], percent: str) -> Decimal | None:
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**6, -(10**6)
        try:
            if found["top"]:
                number = Decimal(found["top"]) / Decimal(found["bottom"])
            elif found["over"]:
                number = Decimal(found["over"]) / Decimal(found["under"]) + Decimal(found["whole"] or 0)
            else:
                plain = found["plain"]
                whole = re.split(r"[.eE]", plain)[0]
                if "," in whole and not re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", whole):
                    return None
                number = Decimal(plain.replace(",", ""))
                if found["power"]:
                    number = number.scaleb(int(found["power"]))
            if found["percent"] and percent == "hundredth":
                number = number / 100 if len(number.as_tuple().digits) < 60 else number.scaleb(-2)
        except (InvalidOperation, ArithmeticError):
            return None
    if not number.is_finite() or abs(number.adjusted()) > 10**6:
        return None
    return -number if found["sign"] == "-" else number


def close(number: Decimal, right: Decimal, tolerance: float, relative: float) -> bool:
    """Whether ``number`` is ``right``, or off by at most ``tolerance`` or a share ``relative`` of ``right``."""
    if number == right:
        return True
    if not tolerance and not relative:
        return False
    with localcontext() as context:
        context.prec = 60
        return abs(number - right) <= max(Decimal(str(tolerance)), Decimal(str(relative)) * abs(right))


# ---------------------------------------------------------------- a letter


class Choice(Reading, frozen=True, kw_only=True, tag_field="verifier", tag="choice"):
    """The answer chooses the reference's letter, one of the first ``options`` letters.

    Looked at is the last ``\\boxed{}``, else what follows the last "answer" on its line (or the next), else the last line. It must name one option and
    no other: "A or B", "B, not A" and "not A" fail. Letters stand alone and are upper case, but where nothing else stands there. An A before a
    lower-case word is the article, an I the pronoun.
    """

    options: Annotated[int, msgspec.Meta(ge=2, le=26)] = 4


class ChoiceVerifier:
    """See ``Choice``."""

    properties = Properties(
        needs="reference: a letter",
        cost="free",
        gameable="by guessing: one in `options` is right, and n tries find it",
        fails="another letter, none, or more than one",
        errors="`after` takes longer than `timeout_s`",
    )

    def __init__(self, settings: Choice) -> None:
        self.name, self.exact, self._settings = name_of(settings), settings.exact, settings
        self._letters = "".join(chr(ord("A") + at) for at in range(settings.options))

    def problem(self, task: Task) -> str:
        given = task.reference
        if not isinstance(given, str) or len(letter := given.strip().strip("().").upper()) != 1:
            what = "no reference" if given is None else f"the reference {shown(given)}"
            return f"has {what}, but choice needs one letter; write it so (A for the first option)"
        if letter not in self._letters:
            return f"has the reference {shown(given)}, which is none of A to {self._letters[-1]}; set options to how many there are"
        return ""

    def cheats(self, task: Task) -> dict[str, str]:
        letters = ", ".join(self._letters)
        return {**hedges(task), "every option named": f"The answer is {letters}.", "every option boxed": f"\\boxed{{{letters}}}"}

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        if problem := self.problem(task):
            raise SettingsError(f"task {task.key!r} {problem}")
        said, missing = read(self._settings, answer_of(trajectory))
        letter = None if missing else chosen(said, self._letters)
        reason = missing or (f"{letter} is not the reference" if letter else "the answer does not name one option and no other")
        return says(self.name, trajectory, letter == task.reference.strip().strip("().").upper(), reason)


_NOT = re.compile(
    r"(?:\bnot|n['\u2019]t|\bnever|\bneither|\bnor|\bexcept|\bcannot be|\brather than)\s+(?:be\s+|option\s+|choice\s+)?[(\[*\"'`]*$", re.I
)
_ARTICLE = re.compile(r"\s+(?!because|since|as\b|is\b|or\b|and\b)[a-z]")


def chosen(text: str, letters: str) -> str | None:
    """The one letter of ``letters`` that ``text`` chooses; None where there is none, or more than one."""
    text = text[-LONGEST:]
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    place = boxed(text)
    if place is None:
        place = lines[-1]
        for at in range(len(lines) - 1, -1, -1):
            marks = list(re.finditer(r"\banswers?\b", lines[at], re.I))
            if marks:
                place = lines[at][marks[-1].end() :]
                if not re.search(r"\w", place.replace("is", "")) and at + 1 < len(lines):
                    place = lines[at + 1]
                break
    place = re.sub(r"\\text(?:bf)?\{([^{}]*)\}", r"\1", place)
    bare = re.sub(r"[\W_]+", "", place)
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    named: set[str] = set()
    for found in re.finditer(rf"(?<![\w'\u2019])([{letters}])(?![\w'\u2019])", place):
        if found[1] in "AI" and _ARTICLE.match(place, found.end()):
            continue
        named.add(found[1])
        if len(named) > 1 or _NOT.search(place[max(0, found.start() - 40) : found.start()]):
            return None
    return named.pop() if len(named) == 1 else None
