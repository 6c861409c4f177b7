from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from mock_server import Fault, MockServer, failure_of, make_target

from rlprompt.errors import ConfigError
from rlprompt.targets.openai import OpenAITarget
from rlprompt.types import Rendered, Target, TargetOutput, TargetRequest

TEXT = TargetRequest(Rendered(text="It was"), max_tokens=8)
CHOICES = TargetRequest(Rendered(text="It was"), choices=(" bad", " good"))
CONTINUATION = TargetRequest(Rendered(text="It was"), continuation=" very good")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_it_is_a_target() -> None:
    with MockServer() as server:
        assert isinstance(make_target(server), Target)


# --- asking ---


def test_chat_sends_messages_and_reads_text_and_usage() -> None:
    messages = (("system", "Be kind."), ("user", "It was"))
    request = TargetRequest(Rendered(messages=messages), max_tokens=8, stop=("\n",))
    with MockServer() as server:
        (output,) = make_target(server, parameters={"top_p": 0.5}).run([request])
    assert output == TargetOutput(text="echo: It was", prompt_tokens=2, completion_tokens=2)
    (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.body == {
        "model": "mock-model",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "It was"}],
        "max_tokens": 8,
        "temperature": 0.0,
        "stop": ["\n"],
        "top_p": 0.5,
    }


def test_plain_text_is_one_user_message_for_chat_and_a_prompt_for_completions() -> None:
    with MockServer() as server:
        make_target(server, max_tokens_field="max_completion_tokens").run([TEXT])
        make_target(server, endpoint="completions").run([TEXT])
    chat, plain = server.calls
    assert chat.body["messages"] == [{"role": "user", "content": "It was"}]
    assert (chat.body["max_completion_tokens"], "max_tokens" in chat.body) == (8, False)
    assert (plain.path, plain.body["prompt"]) == ("/v1/completions", "It was")


def test_samples_have_seeds_of_their_own_and_greedy_requests_none() -> None:
    hot = replace(TEXT, temperature=1.0)
    with MockServer() as server:
        make_target(server, concurrency=1).run([hot, replace(hot, sample=1), replace(hot, seed=1), hot, TEXT])
    seeds = [call.body.get("seed") for call in server.calls]
    assert len(set(seeds[:3])) == 3
    assert seeds[3] == seeds[0]
    assert seeds[4] is None


def test_answers_come_in_the_order_of_the_requests() -> None:
    requests = [replace(TEXT, rendered=Rendered(text=f"number {index}")) for index in range(40)]
    with MockServer(delay_s=0.01) as server:
        outputs = make_target(server, concurrency=8).run(requests)
    assert [output.text for output in outputs] == [f"echo: number {index}" for index in range(40)]
    assert len(server.calls) == 40  # and equal requests are not merged below the cache


def test_it_never_has_more_calls_in_flight_than_allowed_over_all_threads() -> None:
    with MockServer(delay_s=0.02) as server:
        target = make_target(server, concurrency=3)
        threads = [threading.Thread(target=target.run, args=([TEXT] * 6,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        target.close()
    assert len(server.calls) == 24
    assert server.most_in_flight <= 3


def test_run_works_inside_a_running_loop() -> None:
    async def inside(target: OpenAITarget) -> list[TargetOutput]:
        return target.run([TEXT])

    with MockServer() as server:
        assert asyncio.run(inside(make_target(server)))[0].text == "echo: It was"


def test_closing_ends_the_thread_and_the_next_call_starts_a_new_one() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "rlprompt-http"}

    with MockServer() as server:
        before = threads()
        target = make_target(server)
        target.run([TEXT])
        (thread,) = threads() - before
        target.close()
        assert not thread.is_alive()
        assert target.run([TEXT])[0].failure is None
        target.close()


def test_no_requests_mean_no_call() -> None:
    with MockServer() as server:
        assert make_target(server).run([]) == []
    assert server.calls == []


def test_the_estimate_of_tokens_is_an_upper_one() -> None:
    requests = [TEXT, replace(CHOICES, rendered=Rendered(text="Zoë 言葉 " * 20)), CONTINUATION]
    with MockServer(next_tokens=[(" bad", -1.0), (" good", -1.0)]) as server:
        target = make_target(server, endpoint="completions")
        estimates = target.count_tokens(requests)
        outputs = target.run(requests)
    for estimate, output in zip(estimates, outputs, strict=True):
        assert output.failure is None
        assert 0 < output.prompt_tokens + output.completion_tokens <= estimate


# --- choices and likelihoods ---


def test_echo_gives_exact_log_probabilities_of_choices_of_any_length() -> None:
    request = replace(CHOICES, choices=(" bad", " very good"))
    with MockServer() as server:
        (output,) = make_target(server, endpoint="completions", choices_by="echo").run([request])
    # " bad": -0.4; " very" + " good": -0.5 - 0.5 = -1.0; the difference 0.6 is what normalisation keeps.
    assert output.choice_logprobs is not None
    low, high = output.choice_logprobs
    assert low - high == pytest.approx(0.6)
    assert math.exp(low) + math.exp(high) == pytest.approx(1.0)
    assert output.prompt_tokens == 3 + 4  # both prompts, as the server reported
    (call,) = server.calls
    assert (call.body["prompt"], call.body["max_tokens"]) == (["It was bad", "It was very good"], 0)


def test_the_likelihood_of_a_continuation_is_the_sum_over_its_tokens() -> None:
    with MockServer() as server:
        (output,) = make_target(server, endpoint="completions").run([CONTINUATION])
    assert output.logprob == pytest.approx(-1.0)  # " very" -0.5, " good" -0.5


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_top_log_probabilities_of_the_first_token_give_the_choices(endpoint: str) -> None:
    tokens = [(" good", math.log(0.6)), ("bad", math.log(0.2)), ("x", math.log(0.1))]
    with MockServer(next_tokens=tokens) as server:
        (output,) = make_target(server, endpoint=endpoint, choices_by="top-logprobs").run([CHOICES])
    assert output.choice_logprobs == pytest.approx([math.log(0.25), math.log(0.75)])
    assert server.calls[0].body["max_tokens"] == 1


def test_a_choice_beyond_the_top_tokens_leaves_a_text_and_no_probabilities() -> None:
    with MockServer(next_tokens=[(" good", -0.1), ("x", -3.0)]) as server:
        (output,) = make_target(server, choices_by="top-logprobs").run([CHOICES])
    assert (output.choice_logprobs, output.text) == (None, " good")


def test_parsed_choices_are_text_without_probabilities() -> None:
    with MockServer(answer=lambda body: "I think it was Good.") as server:
        (output,) = make_target(server, choices_by="parsed").run([CHOICES])
    assert (output.text, output.choice_logprobs, output.failure) == (" good", None, None)


@pytest.mark.parametrize("text", ["no idea", "good or bad", ""])
def test_an_answer_that_names_no_single_choice_is_malformed_and_keeps_its_usage(text: str) -> None:
    with MockServer(answer=lambda body: text) as server:
        (output,) = make_target(server, choices_by="parsed").run([CHOICES])
    assert failure_of(output) == ("malformed", 1)
    assert (output.prompt_tokens, output.completion_tokens) == (2, 2)


@pytest.mark.parametrize(
    ("constraint", "text", "field"),
    [
        ("json-schema", '{"choice": "good"}', "response_format"),
        ("structured-outputs", "good", "structured_outputs"),
        ("guided-choice", "good", "guided_choice"),
    ],
)
def test_constrained_choices_are_sent_and_read(constraint: str, text: str, field: str) -> None:
    with MockServer(answer=lambda body: text) as server:
        (output,) = make_target(server, choices_by="constrained", constraint=constraint).run([CHOICES])
    assert output.text == " good"
    assert field in server.calls[0].body


def refuse(field: str) -> Callable[[int, Any], Any]:
    """A server that answers 400 to requests with a field."""
    return lambda number, body: Fault("status", 400, body={"error": f"no {field}"}) if body.get(field) else None


@pytest.mark.parametrize(
    ("endpoint", "tokens", "faults", "found", "calls"),
    [
        ("completions", None, (), "echo", 3),
        ("completions", [("bad", -1.0), ("good", -1.0)], refuse("echo"), "top-logprobs", 4),
        ("completions", None, refuse("echo"), "parsed", 5),
        ("chat", [("bad", -1.0), ("good", -1.0)], (), "top-logprobs", 3),
        ("chat", None, (), "parsed", 4),
        ("chat", None, refuse("logprobs"), "parsed", 4),
    ],
    ids=["echo", "no-echo", "plain-parsed", "chat-top", "chat-null", "chat-refused"],
)
def test_auto_finds_the_most_telling_way_once_and_keeps_it(
    endpoint: str, tokens: Any, faults: Any, found: str, calls: int
) -> None:
    with MockServer(answer=lambda body: "good", next_tokens=tokens, faults=faults) as server:
        target = make_target(server, endpoint=endpoint)
        before = target.identity
        outputs = target.run([replace(CHOICES, sample=index) for index in range(3)])
    assert [output.failure for output in outputs] == [None] * 3
    assert (outputs[0].choice_logprobs is None) == (found == "parsed")
    assert len(server.calls) == calls  # 3 answers, and one call for each way that did not work
    assert target.identity == before


def test_auto_adds_the_usage_of_its_tries_to_the_first_answer() -> None:
    with MockServer(answer=lambda body: "good") as server:
        first, second = make_target(server).run([CHOICES, CHOICES])
    assert (first.prompt_tokens, second.prompt_tokens) == (4, 2)


def test_auto_does_not_take_a_broken_server_for_one_without_log_probabilities() -> None:
    faults = [Fault("status", 500)] * 2
    with MockServer(faults=faults, next_tokens=[("bad", -1.0), ("good", -1.0)]) as server:
        first, second = make_target(server, max_attempts=2).run([CHOICES, CHOICES])
    assert failure_of(first) == ("http", 2)
    assert second.choice_logprobs is not None


def test_log_probabilities_that_a_server_does_not_give_are_a_typed_failure() -> None:
    with MockServer() as server:
        (output,) = make_target(server, choices_by="top-logprobs").run([CHOICES])
    assert failure_of(output) == ("unsupported", 1)


def test_chat_cannot_give_a_likelihood_and_nothing_is_sent() -> None:
    with MockServer() as server, pytest.raises(ConfigError, match="needs endpoint 'completions'"):
        make_target(server).run([TEXT, CONTINUATION])
    assert server.calls == []


def test_completions_cannot_read_chat_messages() -> None:
    request = TargetRequest(Rendered(messages=(("user", "x"),)), max_tokens=1)
    with MockServer() as server, pytest.raises(ConfigError, match=r"set target\.kwargs\.endpoint: chat"):
        make_target(server, endpoint="completions").run([request])


# --- configuration ---


def test_the_base_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with MockServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert OpenAITarget("m").run([TEXT])[0].failure is None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"base_url": None}, "give base_url or set OPENAI_BASE_URL"),
        ({"base_url": "localhost:8000/v1"}, "must begin with http"),
        ({"base_url": "ftp://localhost/v1"}, "must begin with http"),
        ({"base_url": "http://user:secretword@localhost/v1"}, "must hold no user"),
        ({"base_url": "http://localhost/v1?api_key=secretword"}, "must hold no user"),
        ({"base_url": "http://[::1"}, "is not a URL"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
        ({"endpoint": "responses"}, "unknown endpoint 'responses'"),
        ({"choices_by": "echo"}, "needs endpoint 'completions'"),
        ({"choices_by": "constrained"}, "needs constraint"),
        ({"choices_by": "parse"}, "did you mean 'parsed'"),
        ({"constraint": "schema"}, "unknown constraint"),
        ({"parameters": {"model": "other"}}, r"parameters\.model is set by the target"),
        ({"parameters": {"api_key": "secretword"}}, "the key comes from api_key_env only"),
        ({"parameters": {"top_p": {1, 2}}}, "must be JSON"),
        ({"concurrency": 0}, "concurrency must be a number of at least 1, got 0"),
        ({"timeout_s": -1}, "timeout_s must be"),
        ({"tokens_per_minute": 0}, "tokens_per_minute must be"),
        ({"max_attempts": "many"}, "max_attempts must be"),
        ({"price": {"prompt_usd": 1}}, "price: unknown key 'prompt_usd'"),
    ],
)
def test_a_wrong_argument_is_a_one_line_error_without_secrets(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        OpenAITarget("m", **{"base_url": "http://localhost:8/v1", **arguments})
    assert "\n" not in str(caught.value)
    assert "secretword" not in str(caught.value)


def test_a_key_with_characters_that_no_header_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\r\nx-evil: 1")
    with pytest.raises(ConfigError, match="holds characters that no key has") as caught:
        OpenAITarget("m", base_url="http://localhost:8/v1")
    assert "evil" not in str(caught.value)
