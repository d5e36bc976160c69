#!/usr/bin/env bash
# Installs everything, then climbs the quickstart ladder. Flags are passed on: scripts/quickstart.sh --seed 1
. "$(dirname "$0")/setup.sh" all
exec sharpen run examples/textworld/quickstart.yaml "$@"
