"""The README.md of an expert: what it is, where it comes from, how good it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from experts.training.statistics import Accuracy


@dataclass(frozen=True)
class Card:
    """The facts of one expert. Every figure is measured by the run that made it."""

    name: str
    base: str
    fingerprint: str
    domain: str
    description: str
    recipe: Mapping[str, Any]
    parameters: int
    best_step: int
    train_seconds: float
    validations: Mapping[int, Accuracy]
    base_accuracy: Accuracy
    expert_accuracy: Accuracy
    constant_accuracy: Accuracy
    """Of always giving the most common right answer."""
    peft_type: str = "SVF"
    objective: str = "REINFORCE"

    @property
    def _what(self) -> str:
        if self.peft_type == "SVF":
            return f"An SVF expert (arXiv 2501.06252): {self.parameters:,} multipliers of singular values"
        return f"A PEFT adapter ({self.peft_type}): {self.parameters:,} parameters"

    def __str__(self) -> str:
        header = yaml.safe_dump(
            {"library_name": "peft", "base_model": self.base, "tags": [self.peft_type.lower(), "selfadapt"]},
            sort_keys=False,
        )
        validations = "\n".join(f"| {step} | {result} |" for step, result in self.validations.items())
        return f"""---
{header}---
# {self.name}

{self.description}

{self._what} for the base `{self.base}`
(fingerprint `{self.fingerprint}`), trained by {self.objective} on the domain `{self.domain}` for
{self.train_seconds / 60:.1f} minutes.

| greedy, held-out problems of the test split | right |
|---|---|
| base | {self.base_accuracy} |
| {"expert" if self.peft_type == "SVF" else "adapter"} | {self.expert_accuracy} |
| always the most common answer | {self.constant_accuracy} |

The test split chose nothing: the step ({self.best_step}) is the best on the validation split.

![training curve](curve.png)

| step | right on the validation split |
|---|---|
{validations}

## Use

```python
>>> from peft import PeftModel
>>> import experts  # registers SVF with PEFT
>>> from selfadapt import load_base
>>> base, tokenizer = load_base("{self.base}")
>>> model = PeftModel.from_pretrained(base, "path/to/{self.name}")
```

## Recipe

```yaml
{yaml.safe_dump(dict(self.recipe), sort_keys=False, allow_unicode=True)}```
"""
