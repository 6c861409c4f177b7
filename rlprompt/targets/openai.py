"""Targets behind an OpenAI-compatible HTTP server: chat and plain completions.

How choices are asked (`choices_by`), most telling first:

- echo (completions): the server echoes prompt + choice with log-probabilities; exact, for choices of any length.
- top-logprobs: the most probable first tokens of the answer; one generated token.
- constrained: the server may write nothing but a choice; brings the choice, no probabilities.
- parsed: free generation that must name exactly one choice; brings the choice, no probabilities.

"auto" asks the first request in that order until the server answers, and keeps to what worked. Probabilities are
never made up: without them `choice_logprobs` is None and `text` is the choice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.seeding import integer_seed
from rlprompt.targets.addresses import check_base_url
from rlprompt.targets.choices import (
    NoAnswer,
    constraint_body,
    from_echo,
    from_top_tokens,
    normalise,
    parse_choice,
    read_constrained,
)
from rlprompt.targets.ledger import Price
from rlprompt.targets.streaming import OnAnswer, OnCall
from rlprompt.targets.transport import CallFailed, Limits, Session, Transport, read_key
from rlprompt.types import Failure, Json, TargetOutput, TargetRequest

Endpoint: TypeAlias = Literal["chat", "completions"]
ChoicesBy: TypeAlias = Literal["auto", "echo", "top-logprobs", "constrained", "parsed"]
Constraint: TypeAlias = Literal["json-schema", "structured-outputs", "guided-choice"]

_PATHS = {"chat": "chat/completions", "completions": "completions"}
_SAMPLING_FIELDS = ("temperature", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "best_of")
_CONTENT_FIELDS = ("model", "messages", "prompt", "suffix", "stream", "stream_options")
_CHOICE_FIELDS = ("echo", "logprobs", "top_logprobs", "response_format", "structured_outputs", "guided_choice")
_OWN_FIELDS = frozenset((*_SAMPLING_FIELDS, *_CONTENT_FIELDS, *_CHOICE_FIELDS))
_SECRET_FIELDS = frozenset({"api_key", "authorization", "headers", "extra_headers", "base_url", "api_base"})
_UNSUPPORTED_STATUS = frozenset({400, 403, 404, 405, 422, 501})
_MESSAGE_TOKENS = 16
"""More than a chat template writes around one message."""
_TEMPLATE_TOKENS = 64
"""More than a chat template writes around a conversation, a default system message included."""
_MAX_PROBES = 3


class OpenAITarget:
    """A model behind an OpenAI-compatible server.

    The key is read from the environment when a call is made; it is never kept, shown, hashed or stored.

    Args:
        model: the server's name for the model.
        base_url: for example http://localhost:8000/v1; by default the environment variable OPENAI_BASE_URL.
        api_key_env: the environment variable that holds the key. The default may be unset (local servers need no
            key), any other must be set.
        endpoint: "chat" or "completions". Plain text is one user message for "chat"; chat messages need "chat".
        choices_by: how choices are asked, see the module; "auto" finds out.
        constraint: how "constrained" is said to the server; "auto" then prefers it to "parsed".
        choice_max_tokens: longest answer to a constrained or parsed question.
        top_logprobs: first tokens to look at; by default 20 for chat and 5 for completions, what most allow.
        max_tokens_field: "max_tokens", or "max_completion_tokens" as some newer models want it.
        parameters: further fields of every request body, for example {"top_p": 0.9}.
        price: listed price, a mapping with `prompt_usd_per_token` and `completion_usd_per_token`.
        **limits: fields of `rlprompt.targets.transport.Limits`: concurrency, requests_per_minute,
            tokens_per_minute, max_attempts, timeout_s, backoff_s, max_wait_s.

    Raises:
        ConfigError: no base URL, an unset key, or an argument that does not fit.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        endpoint: Endpoint = "chat",
        choices_by: ChoicesBy = "auto",
        constraint: Constraint | None = None,
        choice_max_tokens: int = 32,
        top_logprobs: int | None = None,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        parameters: Mapping[str, Any] | None = None,
        price: Price | Mapping[str, float] | None = None,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_attempts: int = 5,
        timeout_s: float = 60.0,
        backoff_s: float = 0.5,
        max_wait_s: float = 60.0,
    ) -> None:
        _check_option("endpoint", endpoint, get_args(Endpoint))
        _check_option("choices_by", choices_by, get_args(ChoicesBy))
        _check_option("max_tokens_field", max_tokens_field, ("max_tokens", "max_completion_tokens"))
        if constraint is not None:
            _check_option("constraint", constraint, get_args(Constraint))
        if choices_by == "constrained" and constraint is None:
            raise ConfigError(f"choices_by 'constrained' needs constraint: {' or '.join(get_args(Constraint))}")
        if choices_by == "echo" and endpoint == "chat":
            raise ConfigError("choices_by 'echo' needs endpoint 'completions': a chat server echoes nothing")
        url = base_url or os.environ.get("OPENAI_BASE_URL")
        if not url:
            raise ConfigError("no base_url for the OpenAI-compatible server; give base_url or set OPENAI_BASE_URL")
        if read_key(api_key_env) is None and api_key_env != "OPENAI_API_KEY":
            raise ConfigError(f"the environment variable {api_key_env} holds no key; set it, or change api_key_env")
        self.model = model
        self.endpoint: Endpoint = endpoint
        self.choices_by: ChoicesBy = choices_by
        self.constraint: Constraint | None = constraint
        self.choice_max_tokens = choice_max_tokens
        self.top_logprobs = top_logprobs if top_logprobs is not None else 20 if endpoint == "chat" else 5
        self.max_tokens_field = max_tokens_field
        self.parameters = _check_parameters(parameters or {})
        self.price = None if price is None else Price.from_config(price)
        self.api_key_env = api_key_env
        limits = Limits(
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
            backoff_s=backoff_s,
            max_wait_s=max_wait_s,
        )
        self._url_hash = hashlib.sha256(check_base_url(url).encode()).hexdigest()
        self._transport = Transport(url, limits)
        self._found: str | None = None if choices_by == "auto" else choices_by

    @property
    def identity(self) -> Json:
        """Everything that can change an answer; a hash instead of the base URL, and no key."""
        return {
            "kind": "openai",
            "model": self.model,
            "base_url_sha256": self._url_hash,
            "endpoint": self.endpoint,
            "choices_by": self.choices_by,
            "constraint": self.constraint,
            "choice_max_tokens": self.choice_max_tokens,
            "top_logprobs": self.top_logprobs,
            "parameters": self.parameters,
        }

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns upper estimates: no token is shorter than a byte, and an echo repeats the prompt per choice."""
        return [self._most_tokens(request) for request in requests]

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Answers all requests, as many at a time as `concurrency` allows.

        Raises:
            ConfigError: the endpoint cannot be asked such a question at all; nothing was sent.
        """
        return self.run_streaming(requests, None)

    def run_streaming(
        self, requests: Sequence[TargetRequest], on_answer: OnAnswer | None, on_call: OnCall | None = None
    ) -> list[TargetOutput]:
        """Answers as `run` does and tells of each answer and call, on another thread.

        So many requests as `concurrency` allows are in flight at most: told of as sent, and not as failed or answered.
        """
        for request in requests:
            self._check(request)
        if not requests:
            return []

        async def work(session: Session) -> list[TargetOutput]:
            session.on_call = on_call
            session.tokens = self.count_tokens(requests) if self._transport.limits.tokens_per_minute else ()
            return await self._answer_all(session, list(requests), on_answer)

        return self._transport.call(work, read_key(self.api_key_env))

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        self._transport.close()

    def __repr__(self) -> str:
        """Names the model and how it is asked; no URL and no key."""
        return f"OpenAITarget({self.model!r}, endpoint={self.endpoint!r}, choices_by={self.choices_by!r})"

    def _check(self, request: TargetRequest) -> None:
        if self.endpoint == "chat" and request.choices is None and request.continuation is not None:
            raise ConfigError(
                "the log-likelihood of a text needs endpoint 'completions'; set target.kwargs.endpoint, or choose "
                "a reward that reads choices or text"
            )
        if self.endpoint == "completions" and request.rendered.text is None:
            raise ConfigError(
                "endpoint 'completions' reads plain text, but the template has chat messages; set "
                "target.kwargs.endpoint: chat"
            )

    def _most_tokens(self, request: TargetRequest) -> int:
        messages = request.rendered.messages or (("user", request.rendered.text or ""),)
        prompt = sum(_size(role) + _size(content) + _MESSAGE_TOKENS for role, content in messages)
        prompt += _TEMPLATE_TOKENS
        if request.choices is not None:
            answer = self.choice_max_tokens
            if self.endpoint == "completions" and self._found in (None, "echo"):
                prompt = sum(prompt + _size(choice) for choice in request.choices)
            return prompt + answer
        return prompt + _size(request.continuation or "") + request.max_tokens

    async def _answer_all(
        self, session: Session, requests: list[TargetRequest], on_answer: OnAnswer | None
    ) -> list[TargetOutput]:
        outputs: dict[int, TargetOutput] = {}

        async def answer(index: int) -> None:
            outputs[index] = await self._answer(session, requests[index], index)
            if on_answer is not None:
                on_answer(index, outputs[index])

        # With "auto", the first questions about choices go one by one until one of them shows what the server can.
        probes = [index for index, request in enumerate(requests) if request.choices is not None][:_MAX_PROBES]
        for index in probes:
            if self._found is not None:
                break
            await answer(index)
        await asyncio.gather(*(answer(index) for index in range(len(requests)) if index not in outputs))
        return [outputs[index] for index in range(len(requests))]

    async def _answer(self, session: Session, request: TargetRequest, position: int) -> TargetOutput:
        try:
            if request.choices is None:
                ask = self._continue if request.continuation is not None else self._generate
                return await ask(session, request, position)
            if self._found is not None:
                return await self._choose(session, request, position, self._found)
            return await self._probe(session, request, position)
        except CallFailed as error:
            failure = Failure("target", error.kind, session.redact(error.message), error.attempts)
            return TargetOutput(prompt_tokens=error.usage[0], completion_tokens=error.usage[1], failure=failure)

    async def _probe(self, session: Session, request: TargetRequest, position: int) -> TargetOutput:
        """Asks in every way that may work, most telling first; the usage of all tries is added up."""
        last = "parsed" if self.constraint is None else "constrained"
        ways = ["top-logprobs", last] if self.endpoint == "chat" else ["echo", "top-logprobs", last]
        prompt_tokens = completion_tokens = 0
        for way in ways[:-1]:
            try:
                output = await self._choose(session, request, position, way)
            except CallFailed as error:
                refused = error.kind == "http" and error.status in _UNSUPPORTED_STATUS
                if error.kind != "unsupported" and not refused:
                    raise
                prompt_tokens += error.usage[0]
                completion_tokens += error.usage[1]
                continue
            self._found = way
            break
        else:
            output = await self._choose(session, request, position, last)
            self._found = last
        return replace(
            output,
            prompt_tokens=output.prompt_tokens + prompt_tokens,
            completion_tokens=output.completion_tokens + completion_tokens,
        )

    async def _choose(self, session: Session, request: TargetRequest, position: int, way: str) -> TargetOutput:
        choices = request.choices or ()
        if way == "echo":
            reply = await self._echo(session, request, position, choices)
            with _Reading(reply):
                return _output(reply, choice_logprobs=normalise(from_echo(choices, _echoed(reply, len(choices)))))
        if way == "top-logprobs":
            chat = self.endpoint == "chat"
            extra = {"logprobs": True, "top_logprobs": self.top_logprobs} if chat else {"logprobs": self.top_logprobs}
            # At temperature 1 the numbers are right whether or not the server scales them by the temperature.
            reply = await self._post(session, request, position, max_tokens=1, temperature=1.0, extra=extra)
            with _Reading(reply):
                logprobs, text = from_top_tokens(_top_tokens(reply, chat), choices)
                return _output(reply, choice_logprobs=logprobs, text=text)
        constraint = self.constraint if way == "constrained" else None
        extra = {} if constraint is None else dict(constraint_body(constraint, choices))
        reply = await self._post(session, request, position, max_tokens=self.choice_max_tokens, extra=extra)
        with _Reading(reply):
            answer = self._text(reply)
            index = (
                parse_choice(answer, choices) if constraint is None else read_constrained(constraint, answer, choices)
            )
            return _output(reply, text=choices[index])

    async def _continue(self, session: Session, request: TargetRequest, position: int) -> TargetOutput:
        texts = (request.continuation or "",)
        reply = await self._echo(session, request, position, texts)
        with _Reading(reply):
            (logprob,) = from_echo(texts, _echoed(reply, 1))
            return _output(reply, logprob=logprob)

    async def _generate(self, session: Session, request: TargetRequest, position: int) -> TargetOutput:
        extra: Json = {"stop": list(request.stop)} if request.stop else {}
        if request.temperature > 0:
            extra["seed"] = integer_seed(request.seed, "target-sample", request.sample)
        reply = await self._post(
            session,
            request,
            position,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            extra=extra,
        )
        with _Reading(reply):
            return _output(reply, text=session.redact(self._text(reply)))

    async def _echo(self, session: Session, request: TargetRequest, position: int, texts: Sequence[str]) -> Json:
        prompts = [f"{request.rendered.text}{text}" for text in texts]
        extra = {"prompt": prompts, "echo": True, "logprobs": 1}
        return await self._post(session, request, position, max_tokens=0, extra=extra)

    async def _post(
        self,
        session: Session,
        request: TargetRequest,
        position: int,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        extra: Mapping[str, Any],
    ) -> Json:
        body: Json = {**self.parameters, "model": self.model, "temperature": temperature}
        body[self.max_tokens_field] = max_tokens
        if self.endpoint == "completions":
            body["prompt"] = request.rendered.text
        else:
            messages = request.rendered.messages or (("user", request.rendered.text or ""),)
            body["messages"] = [{"role": role, "content": content} for role, content in messages]
        return await session.post(_PATHS[self.endpoint], {**body, **extra}, position)

    def _text(self, reply: Json) -> str:
        """Returns the generated text; an empty one is an answer, a missing one is not."""
        if not reply["choices"]:
            raise CallFailed("empty", "the reply holds no answer", usage=_usage(reply))
        first = reply["choices"][0]
        text = first["text"] if self.endpoint == "completions" else first["message"].get("content")
        if text is None:
            reason = str(first.get("finish_reason"))[:40]
            raise CallFailed("empty", f"the answer holds no text (finish_reason {reason})", usage=_usage(reply))
        if not isinstance(text, str):
            raise NoAnswer("the text of the answer is no string")
        return text


class _Reading:
    """While a reply is read, everything that is missing or of the wrong type in it is a malformed reply."""

    def __init__(self, reply: Json) -> None:
        self._usage = _usage(reply)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NoAnswer):
            raise CallFailed("malformed", str(error), usage=self._usage) from error
        if isinstance(error, KeyError | IndexError | TypeError | ValueError | AttributeError):
            raise CallFailed("malformed", "the reply lacks a field that was asked for", usage=self._usage) from error


def _output(reply: Json, **fields: Any) -> TargetOutput:
    prompt_tokens, completion_tokens = _usage(reply)
    return TargetOutput(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, **fields)


def _usage(reply: Json) -> tuple[int, int]:
    """Returns the reported (prompt, completion) tokens; zeros where none are, which the ledger knows to handle."""
    usage = reply.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and count > 0 else 0 for count in counts)
    return prompt, completion


def _logprobs(reply: Json, answer: Json) -> Json:
    found = answer.get("logprobs")
    if found is None:
        raise CallFailed(
            "unsupported", "the server gives no log-probabilities; set choices_by: parsed", usage=_usage(reply)
        )
    if not isinstance(found, dict):
        raise NoAnswer("the log-probabilities are no object")
    return found


def _echoed(reply: Json, count: int) -> list[tuple[list[str], list[float | None]]]:
    answers = sorted(reply["choices"], key=lambda answer: answer["index"])
    if len(answers) != count:
        raise NoAnswer(f"{count} prompts came back as {len(answers)} answers")
    found = [_logprobs(reply, answer) for answer in answers]
    return [(entry["tokens"], entry["token_logprobs"]) for entry in found]


def _top_tokens(reply: Json, chat: bool) -> list[tuple[str, float]]:
    if not reply["choices"]:
        raise CallFailed("empty", "the reply holds no answer", usage=_usage(reply))
    found = _logprobs(reply, reply["choices"][0])
    if chat:
        return [(entry["token"], float(entry["logprob"])) for entry in found["content"][0]["top_logprobs"]]
    return [(token, float(logprob)) for token, logprob in found["top_logprobs"][0].items()]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _check_option(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UnknownNameError(name, str(value), known)


def _check_parameters(parameters: Mapping[str, Any]) -> Json:
    for name in parameters:
        if name in _OWN_FIELDS:
            raise ConfigError(f"parameters.{name} is set by the target itself; remove it")
        if str(name).lower() in _SECRET_FIELDS:
            raise ConfigError(f"parameters.{name} is not allowed; the key comes from api_key_env only")
    try:
        return dict(json.loads(json.dumps(dict(parameters), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"parameters must be JSON values: {error}") from error
