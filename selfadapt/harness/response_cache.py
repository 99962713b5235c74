"""lm-eval's cache of responses (`use_cache`), with each response kept under everything that it depends on.

lm-eval looks a response up by its request alone, so another mixture would get the answers of the first. Here the key
also covers the contents of the base and of the experts that have a part in the answer, and the experts' weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, CachingLM, hash_args
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from experts.mixture import Mixture


class ResponseCache(CacheHook):
    """Responses on disk, including those that lm-eval reports while it computes the others (`add_partial`).

    Args:
        responses: key → response, as `CachingLM` keeps them.
        model: the base, or the base with experts. The base's weights are read now, an expert's for every look-up.
        decoding: what else decides an answer, in types that JSON has.
    """

    def __init__(self, responses: MutableMapping[str, Any], model: Any, decoding: Any) -> None:
        super().__init__(None)
        self._responses = responses
        self._model = model
        self._base = _digest(_base_weights(model), json.dumps(decoding, sort_keys=True, default=str))
        self._keys: dict[str, str | None] = {}  # lm-eval's key of a request that is being answered → ours

    def keys(self, kind: str, requests: Sequence[Instance], mixture: Mixture, rows: Sequence[int]) -> list[str | None]:
        """The key of each request, answered under its row of the mixture; None if answers are sampled."""
        expert = functools.cache(self._expert)
        made_by = {row: self._made_by(mixture.rows([row]), expert) for row in set(rows)}
        keys = []
        self._keys = {}
        for request, row in zip(requests, rows, strict=True):
            sampled = kind == "generate_until" and request.args[1].get("do_sample", False)
            key = None if sampled else hash_args(kind, [*request.args, made_by[row]])
            keys.append(key)
            # If a request is answered under two mixtures, lm-eval does not say which answer it reports.
            own = hash_args(kind, request.args)
            self._keys[own] = key if self._keys.setdefault(own, key) == key else None
        return keys

    def get(self, key: str | None) -> Any:
        """The response; None if there is none."""
        return None if key is None else self._responses.get(key)

    def put(self, key: str | None, response: Any) -> None:
        if key is not None:
            self._responses[key] = response

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self.put(self._keys.get(hash_args(attr, req)), res)

    def _expert(self, name: str) -> str:
        return _digest(get_peft_model_state_dict(self._model, adapter_name=name, save_embedding_layers=False))

    def _made_by(self, row: Mixture, expert: Callable[[str], str]) -> str:
        """A hash of the base, and of the experts in one prompt's mixture with their weights."""
        parts = []
        for k, name in enumerate(row.names):
            weight = row.weights[0, k].item()
            own = {matrix: weights[0, k].item() for matrix, weights in sorted(row.per_matrix.items())}
            if weight or any(own.values()):
                parts.append((expert(name), weight, own))
        return hashlib.sha256(json.dumps([self._base, sorted(parts, key=str)]).encode()).hexdigest()


def _base_weights(model: Any) -> dict[str, Tensor]:
    """Name in the plain base → tensor."""
    if not isinstance(model, PeftModel):
        return model.state_dict()
    own = f".{model.base_model.prefix}"
    weights = model.get_base_model().state_dict().items()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in weights if own not in name}


def _digest(tensors: Mapping[str, Tensor], *more: str) -> str:
    digest = hashlib.sha256("\n".join(more).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


_look_up = CachingLM.__getattr__


def _let_the_model_look(self: CachingLM, attr: str) -> Any:
    """Lets a model with our cache look responses up by itself: `CachingLM`'s own keys ignore mixtures."""
    kept_by_us = isinstance(getattr(self.lm, "cache_hook", None), ResponseCache)
    return getattr(self.lm, attr) if kept_by_us else _look_up(self, attr)


CachingLM.__getattr__ = _let_the_model_look  # type: ignore[method-assign]
