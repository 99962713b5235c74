from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint
from selfadapt import load_base
from selfadapt.base_models import load_config
from selfadapt.bases import gguf_files
from selfadapt.bases.gguf_files import check_room, converted_folder

Q4_0, Q5_0, Q8_0, F16, F32 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q5_0", "Q8_0", "F16", "F32"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing was converted before."""
    monkeypatch.setenv("SELFADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tiny_model: LlamaForCausalLM, tmp_path: Path) -> Path:
    """The tiny model in Q5_0, whose weights neither float16 nor bfloat16 can hold."""
    write_gguf(tmp_path / "tiny.gguf", tiny_model, kind=Q5_0)
    return tmp_path / "tiny.gguf"


def test_gguf_file_is_dequantised(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model)
    model, tokenizer = load_base(str(file))
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<|endoftext|>", "left")
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]
    model.save_pretrained(tmp_path / "saved")


# What is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_kept_has_the_weights_of_the_file(file: Path, dtype: torch.dtype) -> None:
    direct = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    for _ in range(2):
        model, _ = load_base(str(file), dtype=dtype, device="cpu")
        assert model.state_dict().keys() == direct.state_dict().keys()
        for name, tensor in direct.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name


def test_file_is_converted_once_and_that_is_said_once(
    file: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, tokenizer = load_base(str(file))
    [line] = caplog.messages
    kept = converted_folder(file)
    assert str(file) in line
    assert str(kept) in line
    assert "SELFADAPT_CACHE" in line
    assert "\n" not in line
    caplog.clear()
    os.utime(kept / "config.json", ns=(0, 0))
    renamed = file.rename(file.with_name("renamed.gguf"))
    again, tokenizer_again = load_base(str(renamed))
    assert not caplog.messages
    assert (kept / "config.json").stat().st_mtime_ns == 0
    assert [each.name for each in (own_cache / "bases").glob("gguf-*")] == [kept.name]
    assert first.generation_config.to_dict() == again.generation_config.to_dict()
    assert first.config.to_dict() == again.config.to_dict()
    assert tokenizer_again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert tokenizer_again.special_tokens_map == tokenizer.special_tokens_map
    assert load_config(str(renamed)).hidden_size == first.config.hidden_size


def test_other_bytes_other_versions_and_another_conversion_are_kept_apart(
    file: Path, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [converted_folder(file)]
    write_gguf(file, tiny_model, kind=Q8_0)
    folders.append(converted_folder(file))
    monkeypatch.setattr(gguf_files, "CONVERSION", 0)
    folders.append(converted_folder(file))
    monkeypatch.setattr(gguf_files, "version", lambda package: "0.0")
    folders.append(converted_folder(file))
    assert len(set(folders)) == 4


@pytest.mark.parametrize("slow", [True, False])
def test_hash_is_remembered_where_it_takes_long(file: Path, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "SLOW_HASH", -1.0 if slow else 60.0)
    before, stat = converted_folder(file), file.stat()
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"oops")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (converted_folder(file) == before) == slow
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert converted_folder(file) != before


def test_what_a_killed_process_left_is_not_used_and_is_removed(file: Path, own_cache: Path) -> None:
    kept = converted_folder(file)
    half = kept.parent / f".{kept.name}.abc"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{")
    load_base(str(file))
    assert kept.is_dir()
    assert not half.exists()


def test_what_is_kept_treats_text_as_the_file_does(own_cache: Path) -> None:
    """Its class would bring a normalizer."""
    vocabulary = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.backend_tokenizer.normalizer = None
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    kept = own_cache / "bases" / "gguf-x"
    Qwen2ForCausalLM(config).save_pretrained(kept)
    tokenizer.save_pretrained(kept)
    text = "e\N{COMBINING ACUTE ACCENT}"
    assert len(AutoTokenizer.from_pretrained(kept)(text).input_ids) == 2
    assert load_base(str(kept))[1](text).input_ids == tokenizer(text).input_ids
    assert len(tokenizer(text).input_ids) == 3


@pytest.mark.slow
def test_two_processes_convert_once(file: Path) -> None:
    script = f"from selfadapt import load_base; load_base({str(file)!r})"
    both = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    logs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], logs
    assert sum("converting " in log for log in logs) == 1


# Where nothing can be kept


def test_without_a_writable_cache_folder_it_is_converted_in_memory(
    file: Path, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = load_base(str(file))[0].state_dict()
    monkeypatch.setenv("SELFADAPT_CACHE", str(file / "cache"))
    caplog.clear()
    model, _ = load_base(str(file), dtype="bfloat16", device="cpu")
    [line] = caplog.messages
    assert "in memory and not kept" in line
    assert "SELFADAPT_CACHE" in line
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in model.state_dict().items())


@pytest.mark.long
def test_without_room_it_is_converted_in_memory(file: Path, own_cache: Path) -> None:
    """No file may grow beyond 16 kB, as on a disk that fills up while the weights are written."""
    script = (
        "import resource, signal; from selfadapt import load_base; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)); "
        f"print(load_base({str(file)!r})[0].num_parameters())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert done.stderr.count("in memory and not kept") == 1
    assert not any(path.is_dir() for path in (own_cache / "bases").iterdir())


def test_room_is_looked_at_first(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(OSError, match="GB needed"):
        check_room(tmp_path, 10**18)


@pytest.mark.parametrize("size", [0, 100, 5000, -4])
def test_part_of_a_file_is_one_line(file: Path, size: int) -> None:
    part = file.with_name("part.gguf")
    part.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cannot load .*part\.gguf") as refusal:
        load_base(str(part))
    assert "\n" not in str(refusal.value)


# The head


@pytest.mark.parametrize(
    ("of_head", "of_embeddings", "stays"),
    [(Q8_0, Q5_0, "head"), (Q8_0, Q4_0, "head"), (Q4_0, Q8_0, "embeddings"), (F16, Q8_0, "head"), (F32, F32, "head")],
)
@pytest.mark.parametrize("kept", [True, False])
def test_head_that_is_the_embeddings_is_tied_again(
    tiny_model: LlamaForCausalLM,
    tmp_path: Path,
    of_head: GGMLQuantizationType,
    of_embeddings: GGMLQuantizationType,
    stays: str,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model, kind=Q5_0, embeddings=of_embeddings)
    untied = fingerprint(load_base(str(file))[0])
    embeddings = tiny_model.lm_head.weight
    write_gguf(file, tiny_model, kind=Q5_0, embeddings=of_embeddings, head=(embeddings, of_head))
    if not kept:
        monkeypatch.setenv("SELFADAPT_CACHE", str(file / "cache"))
    caplog.clear()
    for said in (1, 1 if kept else 2):
        model, _ = load_base(str(file))
        assert model.config.tie_word_embeddings
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        expected = rounded(embeddings, of_head if stays == "head" else of_embeddings)
        assert torch.equal(model.get_input_embeddings().weight, expected)
        assert fingerprint(model) == untied
        lines = [line for line in caplog.messages if "they are tied" in line]
        assert len(lines) == said
        assert f"both are the file's {stays}" in lines[0]
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("difference", ["all", "one row", "a scale"])
def test_head_of_its_own_stays_apart(tiny_model: LlamaForCausalLM, tmp_path: Path, difference: str) -> None:
    file = tmp_path / "tiny.gguf"
    head = tiny_model.lm_head.weight.detach().clone()
    if difference == "all":
        head = head.flip(0)
    elif difference == "one row":
        head[7] = head[8]
    else:
        head *= 1.5
    write_gguf(file, tiny_model, kind=Q5_0, head=(head, Q8_0))
    model, _ = load_base(str(file))
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.get_output_embeddings().weight, rounded(head, Q8_0))
    assert torch.equal(model.get_input_embeddings().weight, rounded(tiny_model.lm_head.weight, Q5_0))


def rounded(matrix: torch.Tensor, kind: GGMLQuantizationType) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(gguf.quantize(matrix.detach().numpy(), kind), kind))


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    kind: GGMLQuantizationType = F32,
    embeddings: GGMLQuantizationType | None = None,
    head: tuple[torch.Tensor, GGMLQuantizationType] | None = None,
) -> None:
    """A GGUF file of `model`, with SmolLM's kind of vocabulary: bytes and one merge, of two line ends.

    Args:
        kind: of the matrices.
        embeddings: of the embeddings, if another.
        head: a matrix that is stored as the head, and its type.
    """
    config = model.config
    byte_tokens = [chr(code) for code in range(33, 127)] + ["Ċ", "ĊĊ"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens]
    tokens += [f"<|{index}|>" for index in range(len(tokens), config.vocab_size)]
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, matrix, its in _tensors(model, kind, embeddings, head):
        its = F32 if matrix.ndim == 1 or matrix.shape[1] % 32 else its
        writer.add_tensor(name, gguf.quantize(matrix.detach().contiguous().numpy(), its), raw_dtype=its)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(
    model: LlamaForCausalLM,
    kind: GGMLQuantizationType,
    embeddings: GGMLQuantizationType | None,
    head: tuple[torch.Tensor, GGMLQuantizationType] | None,
) -> list[tuple[str, torch.Tensor, GGMLQuantizationType]]:
    config = model.config
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = [] if head is None else [("output.weight", *head)]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if heads := {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            name.split(".")[-2]
        ):
            # GGUF interleaves the two halves that rotary embeddings turn.
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors.append((name, tensor, embeddings or kind if name.startswith("token_embd") else kind))
    return tensors
