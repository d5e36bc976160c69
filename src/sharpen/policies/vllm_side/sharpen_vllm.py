"""What runs on vLLM's side, in the interpreter that has vLLM and not sharpen: ``python sharpen_vllm.py [vLLM's arguments]``.

Beside vLLM's own server: the settings that depend on the device, a guard at its door (with ``VLLM_SERVER_DEV_MODE`` anybody on this machine could
command the workers), and taking up a model folder's weights in place.
"""

from __future__ import annotations

import hmac
import os
import runpy
import sys
from typing import Any


def main() -> None:
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    device = ["--dtype", "float32" if cpu else "bfloat16"]
    if cpu:
        # Compiling takes minutes and a compiler. Of a prompt read in pieces vLLM 0.32 takes back what was sampled before its end, by the generator's
        # offset, which a CPU's has not: with seeds the engine then dies.
        device += ["--enforce-eager", "--no-enable-chunked-prefill"]
    if current_platform.is_sleep_mode_available():
        device.append("--enable-sleep-mode")
    sys.argv[1:1] = device  # what the settings say comes behind, and wins
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


class Guard:
    """ASGI middleware: without the key, nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.key = b"Bearer " + os.environ["SHARPEN_VLLM_KEY"].encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self.key):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"this server belongs to a run of sharpen"})


class Worker:
    """Mixed into vLLM's worker; ``/collective_rpc`` calls these."""

    model_runner: Any
    reload_weights: Any

    def sharpen_sleeps(self) -> dict[str, bool]:
        """Whether sleeping gives memory back here: vLLM's CPU worker answers and does nothing."""
        from vllm.platforms import current_platform

        return {"sleeps": current_platform.is_sleep_mode_available()}

    def sharpen_take_up(self, path: str) -> None:
        """Load the weights in the folder ``path`` in the place of those there."""
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

        self.reload_weights(weights_path=path)
        for layer in self.model_runner.get_model().modules():
            method = getattr(layer, "quant_method", None)
            if isinstance(method, UnquantizedEmbeddingMethod):
                # On CPUs the output head is a packed copy, which reloading leaves as it was where it is tied to the input embeddings (vLLM 0.32).
                method.process_weights_after_loading(layer)


if __name__ == "__main__":
    main()
