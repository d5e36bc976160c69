#!/usr/bin/env bash
# Installs everything, then lint, types, room order and tests. --fast leaves out the tests that run the real model, engines, trainer and sandbox.
. "$(dirname "$0")/setup.sh" all,dev
ruff check .
mypy
lint-imports
fast=; [ "${1:-}" != --fast ] || { fast=1; shift; }
pytest -m "not real" -n 2 --dist worksteal "$@"  # neighbours share what a file sets up
# One at a time: engines and trainers take every core.
[ -n "$fast" ] || exec pytest -m real "$@"
