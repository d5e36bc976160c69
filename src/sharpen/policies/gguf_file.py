"""Write a Llama, Qwen2 or Qwen3 model folder as a GGUF file, the one format OpenVINO GenAI loads without a converter of its own.

Weights are float16 (the reader refuses float32), norms and biases float32. The tokenizer inside is a stub: token ids go in and come out,
so its words are never read. That keeps any tokenizer working and halves the loading time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sharpen.errors import ModelError
from sharpen.models import read_config, weight_files

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def why_not(config: dict[str, Any]) -> str | None:
    """Why a model with this ``config.json`` cannot be written so that the reader computes what it should; None where it can."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return f"the architecture {kind!r} is not one of {', '.join(ARCHITECTURES)}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return f"its rotary scaling {rope.get('rope_type', rope.get('type'))!r} is not read"
    if config.get("use_sliding_window"):
        return "its sliding window is not read"
    if kind == "llama" and (config.get("attention_bias") or config.get("mlp_bias")):
        return "its biases are not read"
    if kind == "llama" and config.get("head_dim", head_size(config)) != head_size(config):
        return "its head size is not the hidden size over the heads"
    return None


def head_size(config: dict[str, Any]) -> int:
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


def write_gguf(folder: str | Path, out: str | Path) -> None:
    """Write the model in ``folder`` to the file ``out``. ModelError where its architecture cannot be written."""
    import gguf
    import torch
    from safetensors import safe_open

    config = read_config(folder)
    if reason := why_not(config):
        raise ModelError(f"{folder} cannot run on OpenVINO: {reason}; use the transformers engine")
    kind, layers, heads = config["model_type"], config["num_hidden_layers"], config["num_attention_heads"]
    heads_kv = config.get("num_key_value_heads") or heads
    writer = gguf.GGUFWriter(out, kind)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    writer.add_key_length(config.get("head_dim") or head_size(config))
    writer.add_value_length(config.get("head_dim") or head_size(config))
    writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([gguf.TokenType.NORMAL, gguf.TokenType.NORMAL, gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[kind], layers
    )
    for file in weight_files(Path(folder)):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                if key == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ModelError(f"{folder} cannot run on OpenVINO: its tensor {key} is unknown; use the transformers engine")
                tensor = tensors.get_tensor(key)
                if kind == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
                    n = heads if key.endswith("q_proj.weight") else heads_kv
                    # GGUF's Llama interleaves the two halves that the rotary embedding turns
                    tensor = tensor.view(n, 2, tensor.shape[0] // n // 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
                writer.add_tensor(name, tensor.to(torch.float32 if tensor.ndim == 1 else torch.float16).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
