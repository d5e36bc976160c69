"""Somebody's function, called in a process that can be killed."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from sharpen import plugins
from sharpen.records import Task, Trajectory, Verdict


def ask(name: str, path: list[str], given: list[Any], wants_reference: bool) -> list[Any]:
    """What the function ``name`` says: ``["verdict", its fields]``, ``["plain", value]``, or ``["other", the type's name]``."""
    sys.path += [folder for folder in path if folder not in sys.path]
    if not wants_reference:
        given = [msgspec.convert(given[0], Task), msgspec.convert(given[1], Trajectory)]
    said = plugins.load(name, "verifier")(*given)
    if isinstance(said, Verdict):
        return ["verdict", msgspec.to_builtins(said)]
    return ["plain", said] if isinstance(said, bool | int | float) else ["other", type(said).__name__]
