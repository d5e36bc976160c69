"""Small projects to start from: what ``sharpen init`` writes. Each runs as it is; the folders beside this file are copied."""

from __future__ import annotations

import shutil
from pathlib import Path

from sharpen.errors import SettingsError, nearest
from sharpen.store.files import writing

_HERE = Path(__file__).parent
KINDS = tuple(sorted(path.name for path in _HERE.iterdir() if (path / "run.yaml").exists()))


def write(kind: str, folder: Path) -> list[Path]:
    """Copy the project ``kind`` into the new folder ``folder``; its files. SettingsError where the kind is unknown or the folder holds something."""
    if kind not in KINDS:
        raise SettingsError(f"there is no project {kind!r}{nearest(kind, KINDS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} exists and is not empty; name a new folder")
    with writing(folder):
        shutil.copytree(_HERE / kind, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return sorted(folder.iterdir())
