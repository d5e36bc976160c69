"""math-verify, in a process that can be killed: it hangs on towers of powers (its issue 65), and its own time limit, by signals, works in no
thread (its issues 42 and 50), so it is switched off here."""

from __future__ import annotations

import functools
import re
from typing import Any

from math_verify import parse, verify

DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")
SHORT = 200  # characters of an answer that may be a formula and nothing else


def wrong(references: list[str], answer: str) -> str:
    """Why ``answer`` equals none of ``references``; "" where it equals one. ValueError where a reference is no mathematics."""
    golds = [_gold(reference) for reference in references]
    read = _parse(answer)
    readings = [read]
    if not DELIMITED.search(answer) and len(answer) <= SHORT and "\n" not in answer:
        readings.append(_parse(f"${answer}$"))  # a bare formula, as references are
    if not any(readings):
        return "no mathematics in the answer"
    return "" if any(_equal(gold, reading) for gold in golds for reading in readings if reading) else "not equal to the reference"


@functools.lru_cache(maxsize=1024)
def _gold(reference: str) -> list[Any]:
    found = _parse(reference if DELIMITED.search(reference) else f"${reference}$")
    if all(isinstance(reading, str) for reading in found):
        raise ValueError(f"the reference {reference[:80]!a} is no mathematics")
    return found


def _parse(text: str) -> list[Any]:
    found: list[Any] = parse(text, parsing_timeout=None)
    return found


def _equal(gold: list[Any], answer: list[Any]) -> bool:
    try:
        return bool(verify(gold, answer, timeout_seconds=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:  # what sympy raises of one pair; the others, such as the texts, may be equal
        return bool(verify(gold, answer, timeout_seconds=None))


wrong(["1"], r"$\frac{2}{2}$ or $x + 50\%$")  # sympy imports much of itself when first used, which is no answer's time
