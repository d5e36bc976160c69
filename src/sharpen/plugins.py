"""A user's own code, found by name: ``module:name``, ``path/to/file.py:name``, or the name of an installed entry point."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from sharpen.errors import SettingsError, nearest

Kind = Literal["verifier", "tool", "environment", "expert"]


def load(spec: str, kind: Kind) -> Callable[..., Any]:
    """What ``spec`` names. Its module is imported, so its code runs.

    A name without a colon is looked up among the entry points of installed packages, in the group ``sharpen.verifiers`` and so on. SettingsError,
    one line, where module, file or name is missing, does not import, or cannot be called.
    """
    where, colon, name = spec.rpartition(":")
    if not colon:
        return _entry_point(spec, kind)
    if not where or not name:
        raise SettingsError(f"{kind} {spec!r} is not module:name or file.py:name")
    try:
        module = _file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        raise SettingsError(f"{kind} {spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise SettingsError(f"{kind} {spec!r}: {where} has no function {name!r}{nearest(name, own)}")
    return found  # type: ignore[no-any-return]  # callable() narrows to an object that can be called


def _entry_point(name: str, kind: Kind) -> Callable[..., Any]:
    group = f"sharpen.{kind}s"
    offered = {point.name: point for point in importlib.metadata.entry_points(group=group)}
    if name not in offered:
        others = nearest(name, offered) if offered else ""
        raise SettingsError(f"{kind} {name!r} is neither module:name, file.py:name nor an entry point in the group {group}{others}")
    try:
        found: Callable[..., Any] = offered[name].load()
    except Exception as error:
        raise SettingsError(f"{kind} {name!r} ({offered[name].value}) cannot be imported: {type(error).__name__}: {error}") from error
    return found


def _file(path: Path) -> Any:
    """The module of a file: one for all names in it, so that they share its state; loaded anew where the file has changed."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    return _module(path.resolve(), path.stat().st_mtime_ns)


@functools.cache
def _module(path: Path, changed: int) -> Any:
    name = f"_sharpen_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module
