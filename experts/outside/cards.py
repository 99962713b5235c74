"""Model cards: Markdown under front matter that the hub indexes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from experts.outside.base_names import is_hub_id, public_name

TAG = "selfadapt"


def model_card(text: str, base: str | None, tags: Sequence[str], *, library: str = "peft", **more: Any) -> str:
    """The text under its front matter.

    Args:
        base: the base's name here; the front matter names it if it is a model on the hub.
        tags: tags besides this package's own.
        library: the library that loads the repository.
        more: further fields of `ModelCardData`, such as `license`, `datasets`, `model_name` and `eval_results`.
    """
    name = public_name(base)
    data = ModelCardData(
        library_name=library,
        base_model=name if is_hub_id(name) else None,
        pipeline_tag="text-generation",
        tags=[*tags, TAG],
        **more,
    )
    return f"---\n{data.to_yaml()}\n---\n{text}"


def library_card(name: str, base: str, adapters: Mapping[str, tuple[str, str]]) -> str:
    """The card of a library.

    Args:
        adapters: name → what the adapter is for, in one sentence, and its own card.
    """
    results: list[EvalResult] = []
    rows = []
    for adapter, (description, card) in adapters.items():
        own = _results(card)
        results += own
        rows.append(f"| `{adapter}` | {description} | {', '.join(f'{each.metric_value:.1%}' for each in own)} |")
    text = f"""# {name}

Experts for the base `{base}`: one folder each, a PEFT adapter with a card of its own.

| expert | what it is for | right on its test split |
|---|---|---|
{chr(10).join(rows)}

## Use

```python
>>> from selfadapt import SelfAdaptiveModel
>>> model = SelfAdaptiveModel.from_pretrained(library="path/to/{name}", dispatch="embedding")
```
"""
    return model_card(text, base, ["svf"], library=TAG, model_name=name, eval_results=results or None)


def _results(card: str) -> list[EvalResult]:
    if not card.startswith("---\n"):
        return []
    results = getattr(ModelCard(card, ignore_metadata_errors=True).data, "eval_results", None) or []
    return [result for result in results if result.metric_type == "accuracy" and isinstance(result.metric_value, float)]


def share_right(domain: str, dataset: str | None, value: float) -> EvalResult:
    """The share of right answers on a domain's test split, in the form that the hub's leaderboards read.

    Args:
        dataset: the data set's id on the hub, if it has one.
    """
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset or domain,
        dataset_name=domain,
        dataset_split="test",
        metric_type="accuracy",
        metric_name="right answers, greedy",
        metric_value=round(value, 4),
    )
