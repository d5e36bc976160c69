"""Writes the tables in docs/advisor.md from the advisor's own rules: python scripts/advisor_docs.py [--check]. A test checks it."""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import get_type_hints

import msgspec

from sharpen.advisor import FITTED, FLOOR, RULES, AdvisorSettings

PAGE = Path(__file__).parent.parent / "docs" / "advisor.md"
BEGIN, END = "<!-- written by scripts/advisor_docs.py -->", "<!-- end -->"


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(*names: str) -> Iterator[str]:
    yield row(*names)
    yield "|" + " --- |" * len(names)


def page(now: str) -> str:
    before, rest = now.split(BEGIN)
    return f"{before}{BEGIN}\n" + "\n".join(written()) + f"\n{END}{rest.split(END)[1]}"


def written() -> Iterator[str]:
    yield from table("action", "stands", "when", "would change it", "the essay")
    for action, rules in groupby(RULES, key=lambda rule: rule.action):
        for at, rule in enumerate(rules):
            yield row("" if at else f"**{action}**", rule.standing, rule.when, rule.changes, f"*{rule.essay}*" if rule.essay else "")
    yield "\n## Thresholds\n"
    yield from table("setting", "default", "what it is, and where it comes from")
    hints = get_type_hints(AdvisorSettings, include_extras=True)
    for field in msgspec.structs.fields(AdvisorSettings):
        meta = next(one for one in hints[field.name].__metadata__ if isinstance(one, msgspec.Meta))
        yield row(f"`advice.{field.name}`", "as below" if field.name == "forecasts" else f"{field.default:g}", str(meta.description))
    yield "\n## Forecasts\n"
    yield f"Of a headroom h: `share` h, and 95 % of the time between `low` and `high` times (|h| + {FLOOR:g}) from there.\n"
    yield from table("method", "share", "low", "high")
    for name, one in FITTED.items():
        yield row(name, f"{one.share:g}", f"{one.low:g}", f"{one.high:g}")


now = PAGE.read_text()
if sys.argv[1:] == ["--check"]:
    sys.exit(0 if now == page(now) else "docs/advisor.md is not what the advisor's rules say; run python scripts/advisor_docs.py")
PAGE.write_text(page(now))
