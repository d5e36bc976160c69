"""What task sources are held to."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sharpen.errors import SharpenError
from sharpen.records import Task
from sharpen.store.files import digest
from sharpen.tasks.base import TaskSet
from sharpen.tasks.overlap import check_overlap
from sharpen.tasks.plugin import TaskPlugin, load, sound
from sharpen.testing.base import broken, short, survives


def check_task_source(
    make: str | Callable[..., TaskSet], settings: Mapping[str, Any] | None = None, *, max_overlap: float | None = None
) -> TaskSet:
    """Hold a task source, called with ``settings`` as keyword arguments, to this, and return its task set:

    - it gives a TaskSet of tasks, every one in a split, with an environment and a verifier or None
    - calling it twice gives the same name and equal tasks in the same order; where ``make`` is a name (``file.py:make``, ``module:make``, an
      entry point), another process with other hash seeds does as well
    - keys are unique; no family and no question is in two of teaching (demo, train), dev and test; with ``max_overlap``, near duplicates neither
    - tasks survive a JSON round trip

    Hold the set's environment and verifier to theirs with ``check_environment(made.environment, made)`` and ``check_verifier(made.verifier, made)``.
    """
    given = dict(settings or {})
    name = make if isinstance(make, str) else getattr(make, "__qualname__", type(make).__name__)
    where, plugin = f"task source {name!r}", TaskPlugin(name=name, settings=given)
    try:
        first, second = (load(plugin) if isinstance(make, str) else sound(make(**given), where) for _ in range(2))
        check_overlap(first, max_overlap)
    except SharpenError as error:
        raise broken(where, "it gives a sound TaskSet", str(error).removeprefix(f"{where}: ")) from None
    except Exception as error:
        raise broken(where, "it does not raise", f"{type(error).__name__}: {error}") from None
    for one, other in itertools.zip_longest(first.tasks, second.tasks):
        if one != other:
            raise broken(where, "calling it twice gives equal tasks", _differ(one, other))
        if not survives(one):
            raise broken(where, "tasks survive a JSON round trip", f"task {one.key!r}: {one}")
    if (first.name, first.environment.name) != (second.name, second.environment.name):
        names = [(made.name, made.environment.name) for made in (first, second)]
        raise broken(where, "calling it twice gives the same names", f"{names[0]}, then {names[1]}")
    if isinstance(make, str) and (there := _elsewhere(plugin, where)) != (here := digest(first.tasks)):
        raise broken(where, "another process gives equal tasks", f"their digest is {here} here, {there} there")
    return first


def _differ(one: Task | None, other: Task | None) -> str:
    if one is None or other is None:
        return f"task {(one or other).key!r} is there only once"  # type: ignore[union-attr]  # one of them is a task
    field = next(field for field in Task.__struct_fields__ if getattr(one, field) != getattr(other, field))
    return f"task {one.key!r}: {field} {short(getattr(one, field))}, then {short(getattr(other, field))}"


def _elsewhere(plugin: TaskPlugin, where: str) -> str:
    """The digest of the tasks that a new process makes, with another hash seed."""
    code = (
        "import sys, msgspec; from sharpen.store.files import digest; from sharpen.tasks.plugin import TaskPlugin, load; "
        "print(digest(load(msgspec.json.decode(sys.argv[1], type=TaskPlugin)).tasks))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, msgspec.json.encode(plugin).decode()]
    shown = subprocess.run(command, env=env, capture_output=True, text=True)
    if shown.returncode:
        raise broken(where, "another process can call it", (shown.stderr.strip().splitlines() or ["it died"])[-1])
    return shown.stdout.split()[-1]
