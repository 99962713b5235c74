"""The architectures that transformers has for causal language models, as tiny random models of their configurations."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

TOKENS = 259  # of the tiny tokenizer

# What configurations call their sizes. Each takes those that it has.
SMALL: dict[str, Any] = {
    "vocab_size": TOKENS,
    "vocab_size_per_layer_input": TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size", "lru_width"), 32),
    "embedding_dim": 32,
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads"), 4),
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions", "max_source_positions"), 64),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),  # logits that differ enough for greedy choices
    "initializer_factor": 10.0,
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), 8),
    # Nothing is dropped out.
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout"), 0.0),
    **dict.fromkeys(("dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout"), 0.0),
    **dict.fromkeys(("classifier_dropout", "encoder_layerdrop", "decoder_layerdrop", "layerdrop"), 0.0),
    # Mixtures of experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    # Latent and sparse attention.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_head_dim", "hidden_size_per_layer_input"), 8),
    "qk_rope_head_dim": 4,
    "index_n_heads": 2,
    "index_topk": 64,  # all: random scores tie, and what is picked then depends on padding
    "partial_rotary_factor": 0.5,
    "type_vocab_size": 2,
    # Recurrent states.
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("conv_kernel", "conv_kernel_size", "mamba_d_conv", "linear_conv_kernel_dim"), 4),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank", "linear_num_value_heads"), 4),
    **dict.fromkeys(("expand", "mamba_expand", "linear_num_key_heads"), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "num_heads", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    "mamba_d_ssm": 64,
}
BERTS = """
    Bert BertGeneration BigBird Camembert Data2VecText Electra Ernie MegatronBert RemBert Roberta RobertaPreLayerNorm
    RoFormer XLMRoberta XLMRobertaXL
""".split()  # noqa: SIM905
LATENT = {"num_key_value_heads": 4, "head_dim": 4}
# Their blocks of attention share weights.
SHARING = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "use_mamba_kernels": False,
}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("AXK1", "AXK2", "BailingHybrid", "DeepseekV2", "DeepseekV3", "DeepseekV32", "Youtu"), LATENT),
    **dict.fromkeys(("Glm4MoeLite", "GlmMoeDsa"), LATENT),
    **{name: {"is_decoder": True} for name in BERTS},
    "CodeGen": {"rotary_dim": 4},
    "GPTJ": {"rotary_dim": 4},
    "Bamba": {"attn_layer_indices": [1]},
    "DeepseekV4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "Dots3NoteText": {"num_key_value_heads": 4},
    "Gemma3nText": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
    },
    "GPTNeo": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybrid": {"layer_types": ["mamba", "attention"]},
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "KimiLinear": LATENT
    | {"layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 8, "linear_num_heads": 4},
    "Lfm2Moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "LongcatFlash": LATENT
    | {"num_layers": 1, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48, "zero_expert_num": 2, "moe_topk": 2},
    "MiniCPM3": {"num_key_value_heads": 4},
    "Qwen4ExpText": {
        **{"hc_count": 2, "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8},
        **{"indexer_budget": 64, "indexer_compress_ratio": 1},
    },
    "RecurrentGemma": {"num_hidden_layers": 3},
    "RoCBert": {
        "is_decoder": True,
        **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 8),
        **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), TOKENS),
    },
    "Xmod": {"is_decoder": True, "default_language": "en_XX"},
    "Zamba": SHARING | {"n_mamba_heads": 2},
    "Zamba2": SHARING | {"n_mamba_heads": 8, "adapter_rank": 8},
    "Zaya": {"num_experts_per_tok": 1},
}


def small_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of an architecture with small numbers, and a layer of each kind that it has."""
    cls = getattr(transformers, f"{name}Config")
    own = OWN.get(name, {}) | changes
    return _small(cls, _one_of_each(cls, own) | own)


def small_model(name: str, **changes: Any) -> PreTrainedModel:
    """A random model, the same every time, in float32 and for evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(small_config(name, **changes), dtype=torch.float32).eval()


def _small(cls: Any, own: dict[str, Any]) -> PreTrainedConfig:
    fields = {field.name for field in dataclasses.fields(cls)}
    names = getattr(cls, "attribute_map", None) or {}
    sizes = {names.get(key, key): value for key, value in SMALL.items()}
    sizes |= {key: value for key, value in SMALL.items() if key not in names}
    parts = {
        key: _small(part, _one_of_each(part, {}))
        for key, part in (getattr(cls, "sub_configs", None) or {}).items()
        if key.endswith("text_config") and dataclasses.is_dataclass(part)
    }
    return cls(**{key: value for key, value in (sizes | parts).items() if key in fields} | own)


def _one_of_each(cls: Any, own: dict[str, Any]) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(cls)}
    if "layer_types" not in fields or "layer_types" in own:
        return {}
    kinds = list(dict.fromkeys(getattr(cls(), "layer_types", None) or []))
    counts = [key for key in ("num_hidden_layers", "num_layers") if key in fields]
    changed = {"layer_types": kinds, **{key: len(kinds) for key in counts}}
    if len(kinds) < 2:
        return {}
    try:
        _small(cls, changed | own)
    except (TypeError, ValueError):  # other lists of its own go with the default
        return {}
    return changed
