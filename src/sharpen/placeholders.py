"""Settings that are text with places to be filled, written ``{name}``: they are checked when the settings are read, not when they are filled."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from string import Formatter

from sharpen.errors import SettingsError


def check(setting: str, text: str, needed: Collection[str]) -> None:
    """SettingsError where ``text`` cannot be filled by ``format``: a name that is none of ``needed``, one of them missing, a lone brace.

    A brace that is meant as one stands there twice, as in Python.
    """
    try:
        found = [(name, how or spec) for _, name, spec, how in Formatter().parse(text) if name is not None]
    except ValueError:
        raise SettingsError(f"{setting} holds a lone brace; write {{{{ or }}}} for a plain one; {_there_is(needed)}") from None
    for name, how in found:
        if name not in needed:
            raise _unknown(setting, name, needed)
        if how:
            raise SettingsError(f"{setting} says how {_braced(name)} is to be printed; write {_braced(name)} alone")
    for name in needed:
        if name not in {one for one, _ in found}:
            raise SettingsError(f"{setting} has no place for the {name}; write {_braced(name)} in it")


def check_spelling(setting: str, text: str, known: Collection[str]) -> None:
    """For text in which braces may mean other things too, such as a command: SettingsError only where a ``{name}`` is nearly one of ``known``."""
    for name in re.findall(r"(?<![{$])\{(\w+)\}(?!\})", text):
        if name not in known and difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75):
            raise _unknown(setting, name, known)


def _unknown(setting: str, name: str, known: Collection[str]) -> SettingsError:
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    meant = f"; did you mean {_braced(close[0])}?" if close else ""
    return SettingsError(f"{setting} has the unknown placeholder {_braced(name)}{meant}; {_there_is(known)}")


def _there_is(known: Collection[str]) -> str:
    return f"its placeholders: {', '.join(map(_braced, known))}"


def _braced(name: str) -> str:
    return f"{{{name}}}"
