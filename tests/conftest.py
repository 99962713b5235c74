"""What all tests share: tiny models that need no download, the built-in base, and a cache folder of their own."""

from __future__ import annotations

import os

# Tiny models gain nothing from a second thread, and lose much where another program uses its core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from experts.library import ExpertLibrary
from experts.outside.errors import UserError
from experts.outside.files import cache_folder
from experts.svf import SVFConfig
from experts.svf.fingerprint import fingerprint
from selfadapt import load_base
from tests.hub_server import TOKEN, HubServer, serving

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_WITH_PICTURES = (
    "{% for message in messages %}<|im_start|>{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
USER_CACHE = cache_folder()

# The same examples everywhere: a change is not held up by what it did not touch. `make test-slow` draws others.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache folder for the whole run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFADAPT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def smollm2_folder(cache: Path) -> Path:
    """The built-in base, taken from the user's own cache (or put there), and linked into the tests' cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFADAPT_CACHE", str(USER_CACHE))
        try:
            load_base("smollm2-135m")
        except UserError as error:
            if isinstance(error.__cause__, subprocess.CalledProcessError):
                pytest.skip(str(error))
            raise
    folder = cache / "bases" / "smollm2-135m"
    folder.parent.mkdir(exist_ok=True)
    if not folder.exists():
        folder.symlink_to(USER_CACHE / "bases" / "smollm2-135m", target_is_directory=True)
    return folder


@pytest.fixture
def smollm2(smollm2_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fresh copy of the built-in base; half a second."""
    return load_base("smollm2-135m")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Every byte is a token, and ChatML's three marks: 259 tokens that can write any text."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        padding_side="left",
        chat_template=CHATML,
    )


@pytest.fixture
def tiny_model(tiny_tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A fresh copy of one random Llama in float32: 2 layers, 14 linear layers of at most 48 × 32."""
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # Ten times the usual: its logits differ enough for greedy choices to mean something.
        initializer_range=0.2,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def seeing(tiny_tokenizer: PreTrainedTokenizerBase) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """A tiny random LLaVA-NeXT and its processor; a picture has 8 × 8 dots."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer._tokenizer, **tiny_tokenizer.special_tokens_map)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = CHAT_WITH_PICTURES
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_grid_pinpoints=[[8, 8]]
    )
    processor = LlavaNextProcessor(
        pictures,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=CHAT_WITH_PICTURES,
        num_additional_image_tokens=1,
    )
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LlamaConfig(**SMALL, **ends, vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.2)
    config = LlavaNextConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**SMALL, image_size=8, patch_size=4, initializer_range=0.2),
        image_token_index=len(tokenizer) - 1,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaNextForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(10)  # a picture speaks as loud as a word
    model.generation_config.update(pad_token_id=0, eos_token_id=2)
    return model, processor


@pytest.fixture
def tiny_folder(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """The tiny model and its tokenizer as a checkpoint on disk."""
    folder = tmp_path / "tiny"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def library(tiny_folder: Path, tmp_path: Path) -> ExpertLibrary:
    """Two random experts for the tiny base: a of full rank, b of rank 8."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    library = ExpertLibrary.create(tmp_path / "library", str(tiny_folder), fingerprint(base))
    for seed, (name, config) in enumerate({"a": SVFConfig(), "b": SVFConfig(rank=8)}.items()):
        config.base_fingerprint = library.fingerprint
        config.description = {"a": "Sums of numbers.", "b": "Questions about animals."}[name]
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
        base = model.unload()
        library.add(tmp_path / name)
    return library


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub of this test's own, where someone is logged in, and an empty cache."""
    with serving() as server:
        for name, value in {
            "constants.ENDPOINT": server.url,
            "constants.HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "constants.HF_HUB_CACHE": str(tmp_path / "hub cache"),
            "constants.HF_HUB_DISABLE_XET": True,  # large files go over HTTP
            "constants.HF_TOKEN_PATH": str(tmp_path / "no token"),
            "hf_api.api.endpoint": server.url,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.{name}", value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Path:
    """A recipe that trains the tiny base for two steps."""
    path = tmp_path / "numbers.yaml"
    document = {
        "model": str(tiny_folder),
        "domain": {
            "kind": "reasoning_gym",
            "name": "numbers",
            "description": "Sums.",
            "dataset": "chain_sum",
            "answer_in": "last_number",
            "train_size": 32,
        },
        "adapt": {"rank": 8},
        "training": {
            "learning_rate": 0.05,
            "steps": 2,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "max_new_tokens": 4,
            "validate_every": 1,
            "validation_size": 4,
        },
        "test_size": 4,
    }
    path.write_text(yaml.safe_dump(document))
    return path
