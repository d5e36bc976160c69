"""``python -m sharpen``."""

from sharpen.cli import entry

entry()
