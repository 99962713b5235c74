"""Stock TRL on the domain and step of a recipe: what our training is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from trl import RLOOConfig, RLOOTrainer

from experts.domains.base import Domain, load_rows
from experts.training.reinforce import Reinforce
from experts.training.trainer import LoadedBase
from experts.training.trl_glue import reward_function

LORA = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])


def stock(base: LoadedBase, domain: Domain, options: Reinforce, folder: Path, adapter: PeftConfig = LORA) -> Any:
    """TRL's RLOOTrainer with a LoRA; prompts, samples, lengths, temperature and micro-batches come from `options`."""
    sequences = options.prompts_per_step * options.samples_per_prompt
    args = RLOOConfig(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.micro_batch_size,
        gradient_accumulation_steps=sequences // options.micro_batch_size,
        num_generations=options.samples_per_prompt,
        max_completion_length=options.max_new_tokens,
        temperature=options.temperature,
        learning_rate=options.learning_rate,
        beta=0.0,
        gradient_checkpointing=options.gradient_checkpointing,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=base.model.device.type == "cpu",
    )
    return RLOOTrainer(
        model=base.model,
        reward_funcs=reward_function(domain, options),
        args=args,
        train_dataset=load_rows(domain, "train"),
        processing_class=base.tokenizer,
        peft_config=adapter,
    )
