"""What may be asked: OpenAI's fields that change an answer are obeyed or refused by name; the others are ignored."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experts.engine.sampling import Sampling
from experts.outside.errors import SEEDS, UserError, short
from selfadapt.serving.errors import RequestError

HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("prediction", "parallel_tool_calls"),
}
"""Fields that change no answer here."""

IDLE: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "functions": ([],),
    "function_call": ("auto", "none"),
}
"""Values, besides null, at which a field that is not supported here changes nothing."""

MOST_STOPS = 16
MOST_LOGPROBS = 20

Asked = TypeVar("Asked", bound="Options")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None


class Options(BaseModel):
    """What both kinds of requests may ask for."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    mixture: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1)

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen; by default they are drawn at a temperature of 1, as OpenAI's are."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MOST_STOPS:
            raise RequestError(400, f"stop has {len(stop)} texts; at most {MOST_STOPS} are allowed", param="stop")
        always: dict[str, Any] = {
            "stop": stop,
            "repetition_penalty": self.repetition_penalty or 1.0,
        }
        if self.temperature == 0:  # clients send the rest all the same
            return Sampling(**always)
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            seed=None if self.seed is None else self.seed % (SEEDS + 1),
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            **always,
        )

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatOptions(Options):
    messages: list[Any]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What goes to the chat template besides the messages; the template must know each."""
        arguments = dict(self.chat_template_kwargs or {})
        if self.tools and self.tool_choice != "none":
            if self.tool_choice not in (None, "auto"):
                raise RequestError(400, "tool_choice must be auto or none: nothing here can make a base call a tool")
            arguments["tools"] = self.tools
        if self.response_format not in (None, *IDLE["response_format"]):
            arguments["response_format"] = self.response_format
        return arguments


class CompletionOptions(Options):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @property
    def new_tokens(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens


def read_request(kind: type[Asked], body: bytes) -> Asked:
    """The request that a body holds.

    Raises:
        RequestError: 400, in one line, for what is not JSON, has a wrong type, or asks for something unsupported.
    """
    try:
        document = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise RequestError(400, "the request is nested too deep") from None
    except UserError as error:
        raise RequestError(400, str(error)) from error
    except ValueError as error:
        raise RequestError(400, f"the request is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError(400, f"the request must be a JSON object, not {short(document)}")
    try:
        asked = kind.model_validate(document)
    except ValidationError as error:
        raise _mistake(error, kind) from error
    except RecursionError:
        raise RequestError(400, "the request is nested too deep") from None
    for name, value in (asked.model_extra or {}).items():
        if name not in HARMLESS and value is not None and value not in IDLE.get(name, ()):
            raise RequestError(400, f"{name[:60]} is not supported here; leave it out", param=name[:60])
    return asked


def _no_number(name: str) -> NoReturn:
    raise UserError(f"the request holds {name}, which JSON does not have")


def _mistake(error: ValidationError, kind: type[Options]) -> RequestError:
    """The first of a request's mistakes."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0])[:60] if first["loc"] else None
    if first["type"] == "missing":
        return RequestError(400, f"the request has no {field}", param=field)
    message = f"{field} is wrong: {first['msg'][:1].lower()}{first['msg'][1:]}, not {short(first['input'])}"
    return RequestError(400, message, param=field)
