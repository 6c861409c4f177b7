"""The checks T7 (failure injection), T10 (budget), T11 (cache) and T12 (secrets) for API targets."""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from mock_server import Fault, MockServer, failure_of, make_target

from rlprompt.config import BudgetConfig
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.targets import transport
from rlprompt.targets.cache import CachedTarget, ResponseCache
from rlprompt.targets.ledger import Ledger, Price
from rlprompt.targets.openai import OpenAITarget
from rlprompt.targets.pace import Pace
from rlprompt.types import Rendered, TargetRequest

KEY = "sk-canary-0123456789abcdef"
TEXT = TargetRequest(Rendered(text="It was"), max_tokens=8)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# --- T7: failures ---


@pytest.mark.parametrize(
    ("fault", "kind", "attempts"),
    [
        (Fault("status", 429, {"retry-after": "0"}), "rate-limit", 3),
        (Fault("status", 429, body={"error": {"code": "insufficient_quota"}}), "rate-limit", 1),
        (Fault("status", 500), "http", 3),
        (Fault("status", 503), "http", 3),
        (Fault("status", 400), "http", 1),
        (Fault("status", 401), "http", 1),
        (Fault("status", 302, {"location": "/v1/elsewhere"}), "http", 1),
        (Fault("status", 400, body={"error": {"code": "context_length_exceeded"}}), "too-long", 1),
        (Fault("status", 400, body={"message": "maximum context length is 8"}), "too-long", 1),
        (Fault("status", 502, body="<html>bad gateway</html>"), "http", 3),
        (Fault("malformed"), "malformed", 3),
        (Fault("cut"), "malformed or connection", 3),  # the client may see first what comes behind the cut
        (Fault("array"), "malformed", 3),
        (Fault("oversized"), "malformed", 3),
        (Fault("error-200"), "malformed", 1),
        (Fault("empty"), "empty", 1),
        (Fault("null"), "empty", 1),
        (Fault("reset"), "connection", 3),
        (Fault("short"), "connection", 3),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else str(value),
)
def test_t7_every_fault_is_a_typed_failure_after_bounded_attempts(fault: Any, kind: str, attempts: int) -> None:
    with MockServer(faults=lambda number, body: fault) as server:
        (output,) = make_target(server, max_attempts=3).run([TEXT])
    found, tried = failure_of(output)
    assert found in kind.split(" or ")
    assert tried == attempts
    assert len(server.calls) == attempts  # one retry loop: no hidden one multiplies it


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_t7_a_deadline_ends_slow_answers(kind: str) -> None:
    with MockServer(faults=lambda number, body: Fault(kind)) as server:
        start = time.monotonic()
        (output,) = make_target(server, max_attempts=2, timeout_s=0.2).run([TEXT])
        assert time.monotonic() - start < 4  # the hanging answer takes 30 s, the dripping one 5 s
    assert failure_of(output) == ("timeout", 2)
    assert len(server.calls) == 2


def test_t7_nobody_listening_is_a_connection_failure() -> None:
    with MockServer() as server:
        pass
    (output,) = make_target(server, max_attempts=2).run([TEXT])
    assert failure_of(output) == ("connection", 2)


@pytest.mark.parametrize("fault", [Fault("status", 429), Fault("malformed"), Fault("reset"), Fault("short")])
def test_t7_a_passing_fault_is_retried_to_the_right_answer(fault: Any) -> None:
    with MockServer(faults=[fault, fault]) as server:
        (output,) = make_target(server).run([TEXT])
    assert output.text == "echo: It was"
    assert len(server.calls) == 3


def test_t7_one_failure_does_not_touch_its_neighbours() -> None:
    requests = [replace(TEXT, rendered=Rendered(text=f"number {index}")) for index in range(10)]
    with MockServer(
        faults=lambda number, body: Fault("status", 400) if body["messages"][-1]["content"] == "number 3" else None
    ) as server:
        outputs = make_target(server).run(requests)
    assert [index for index, output in enumerate(outputs) if output.failure is not None] == [3]


def test_t7_an_empty_text_is_an_answer_and_not_a_failure() -> None:
    with MockServer(answer=lambda body: "") as server:
        (output,) = make_target(server).run([TEXT])
    assert (output.text, output.failure) == ("", None)


def test_t7_a_missing_usage_reaches_the_ledger_as_missing() -> None:
    with MockServer(faults=[Fault("no-usage")]) as server:
        target, ledger = make_target(server), Ledger()
        (estimate,) = target.count_tokens([TEXT])
        with ledger.reserve(1, estimate) as reservation:
            reservation.settle(target.run([TEXT]))
    assert ledger.snapshot()["used"]["tokens"] == estimate


def test_retry_after_is_honoured_and_holds_everybody_back() -> None:
    with MockServer(faults=[Fault("status", 429, {"retry-after": "0.4"})]) as server:
        outputs = make_target(server, concurrency=1, backoff_s=0.001).run([TEXT] * 3)
    assert [output.failure for output in outputs] == [None] * 3
    first, *others = [call.seconds for call in server.calls]
    assert len(others) == 3
    assert min(others) - first >= 0.39


def test_retry_after_may_be_a_date() -> None:
    def soon(number: int, body: Any) -> Any:
        # Dates have whole seconds: this one lies 1 to 2 s ahead.
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return Fault("status", 503, {"retry-after": date}) if number == 0 else None

    with MockServer(faults=soon) as server:
        (output,) = make_target(server, backoff_s=0.001).run([TEXT])
    assert output.failure is None
    assert server.calls[1].seconds - server.calls[0].seconds > 0.5


def test_a_server_that_asks_for_too_long_a_wait_is_given_up_at_once() -> None:
    start = time.monotonic()
    with MockServer(faults=lambda number, body: Fault("status", 429, {"retry-after": "3600"})) as server:
        (output,) = make_target(server, max_wait_s=1.0).run([TEXT])
    assert failure_of(output) == ("rate-limit", 1)
    assert time.monotonic() - start < 30


def test_the_wait_doubles_between_attempts() -> None:
    with MockServer(faults=[Fault("status", 500)] * 3) as server:
        make_target(server, backoff_s=0.08).run([TEXT])
    times = [call.seconds for call in server.calls]
    waits = [after - before for before, after in itertools.pairwise(times)]
    # Position 0 has the spread 0.75: 0.06, 0.12 and 0.24 s.
    for wait, least in zip(waits, (0.06, 0.12, 0.24), strict=True):
        assert least * 0.95 <= wait


def test_the_pace_spaces_calls_evenly() -> None:
    now = 100.0
    pace = Pace(120.0, clock=lambda: now)
    assert pace.delay() == 0.0
    assert pace.delay() == pytest.approx(0.5)  # 60 s / 120
    now = 100.5
    assert pace.delay() == 0.0
    pace.pause(3.0)
    now = 101.5
    assert pace.delay() == pytest.approx(2.0)


def test_the_pace_meters_tokens_and_learns_how_far_estimates_are_off() -> None:
    now = 100.0
    pace = Pace(None, 6000.0, clock=lambda: now)  # 10 ms a token
    assert pace.expected(200) == 200.0
    assert pace.delay(300.0) == 0.0  # a second of credit: 99 + 3 = 102
    assert pace.delay(1.0) == pytest.approx(2.0)
    pace.settle(300, 300.0, 60)  # 240 tokens less: 2.4 s earlier
    assert pace.expected(200) == pytest.approx(40.0)  # 60 of 300
    assert pace.delay(40.0) == 0.0  # 99.6 + 0.4
    now = 100.2
    assert pace.delay(150.0) == 0.0  # 100 + 1.5
    pace.refund(150.0)
    assert pace.delay(30.0) == 0.0
    pace.settle(30, 30.0, 130)  # 100 more than thought: 100.3 + 1
    assert pace.delay(1.0) == pytest.approx(1.1)


@pytest.mark.parametrize(("concurrency", "estimate"), [(16, 1000), (64, 5000), (4, 200)])
def test_the_pace_reaches_the_limit_and_does_not_pass_it(concurrency: int, estimate: int) -> None:
    """Calls of 2 s that take 200 tokens each, at 60,000 tokens a minute, by a clock of our own."""
    now, used, done, limit = 0.0, 200, 0, 60_000
    pace = Pace(None, limit, clock=lambda: now)
    flying: list[tuple[float, float]] = []
    while now < 120.0:
        for end, expected in [call for call in flying if call[0] <= now]:
            pace.settle(estimate, expected, used)
            flying.remove((end, expected))
            done += 1
        while len(flying) < concurrency and pace.delay(expected := pace.expected(estimate)) == 0.0:
            flying.append((now + 2.0, expected))
        now += 0.05
    possible = min(limit * 2, concurrency / 2.0 * 120.0 * used)
    assert 0.85 * possible <= done * used <= limit * 2 + 1000


def test_a_minute_has_no_more_tokens_than_allowed_by_the_servers_count() -> None:
    with MockServer() as server:
        started = time.monotonic()
        # The server counts the tokens: at most 12,000 a minute are 200 a second.
        outputs = make_target(server, tokens_per_minute=12_000, concurrency=4).run([TEXT] * 12)
        seconds = time.monotonic() - started
    used = [output.prompt_tokens + output.completion_tokens for output in outputs]
    assert len(server.calls) == 12
    assert 0 < sum(used[:-1]) / 200 <= seconds * 1.02


def test_an_interrupt_of_the_caller_stops_the_calls() -> None:
    """Raised in its thread, as a second Ctrl-C is where the next iteration is played ahead."""
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            target.run([TEXT] * 20)
        except BaseException as error:
            ended.append(error)

    with MockServer(delay_s=0.2) as server:
        target = make_target(server, concurrency=1)
        thread = threading.Thread(target=ask)
        thread.start()
        while not server.calls:
            time.sleep(0.01)
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt))
        thread.join(10)
        assert [type(error) for error in ended] == [KeyboardInterrupt]
        time.sleep(0.5)
        assert len(server.calls) < 10
        assert target.run([TEXT])[0].failure is None  # and the target still works


# --- T10: budget, T11: cache ---


def test_t10_sixty_four_workers_never_pass_the_budget_on_the_servers_own_count(tmp_path: Path) -> None:
    price = Price(1e-6, 2e-6)
    ledger = Ledger(BudgetConfig(max_target_calls=50, max_cost_usd=1.0), prices={"target": price})
    refused: list[int] = []
    with MockServer() as server:
        target = CachedTarget(make_target(server), ResponseCache(tmp_path / "c.sqlite"))

        def work(worker: int) -> None:
            requests = [replace(TEXT, rendered=Rendered(text=f"{worker} {index}")) for index in range(3)]
            try:
                with ledger.reserve(3, target.count_tokens(requests)) as reservation:
                    reservation.settle(target.run(requests))
            except BudgetExceededError:
                refused.append(worker)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report = ledger.snapshot()
    assert len(server.calls) == report["used"]["calls"] == report["paid"]["calls"] == 48  # 16 workers of 3 calls
    assert len(refused) == 48
    # 48 calls of 2 prompt tokens at 1e-6 and 2 completion tokens at 2e-6
    assert report["paid"]["cost_usd"] == pytest.approx(48 * 6e-6)


def test_t10_cache_hits_are_used_and_not_paid(tmp_path: Path) -> None:
    with MockServer() as server:
        for paid in (2, 0):
            target = CachedTarget(make_target(server), ResponseCache(tmp_path / "c.sqlite"))
            ledger = Ledger()
            requests = [replace(TEXT, rendered=Rendered(text=f"{index}")) for index in range(2)]
            with ledger.reserve(2, target.count_tokens(requests)) as reservation:
                reservation.settle(target.run(requests))
            report = ledger.snapshot()
            assert (report["used"]["calls"], report["used"]["tokens"]) == (2, 2 * 3)
            assert report["paid"]["calls"] == paid
        assert len(server.calls) == 2


def test_t11_two_servers_with_one_model_name_do_not_share_answers(tmp_path: Path) -> None:
    with MockServer(answer=lambda body: "one") as first, MockServer(answer=lambda body: "two") as second:
        texts = [
            CachedTarget(make_target(server), ResponseCache(tmp_path / "c.sqlite")).run([TEXT])[0].text
            for server in (first, second)
        ]
    assert texts == ["one", "two"]


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "completions"},
        {"choices_by": "parsed"},
        {"constraint": "json-schema"},
        {"choice_max_tokens": 5},
        {"top_logprobs": 3},
        {"parameters": {"top_p": 0.5}},
        {"base_url": "http://localhost:9/v1"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_t11_whatever_may_change_an_answer_is_part_of_the_identity(change: dict[str, Any]) -> None:
    plain = OpenAITarget("m", base_url="http://localhost:8/v1").identity
    assert OpenAITarget("m", **{"base_url": "http://localhost:8/v1", **change}).identity != plain
    assert OpenAITarget("n", base_url="http://localhost:8/v1").identity != plain
    assert OpenAITarget("m", base_url="http://localhost:8/v1/", timeout_s=1, concurrency=2).identity == plain


# --- T12: secrets ---


def test_t12_the_key_reaches_the_server_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    faults = [
        Fault("status", 401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        Fault("status", 400, body=f"headers were: Authorization: Bearer {KEY}"),
    ]
    with (
        caplog.at_level(logging.DEBUG),
        MockServer(faults=faults, answer=lambda body: f"you sent {KEY}") as server,
    ):
        inner = make_target(server, api_key_env="MY_KEY", concurrency=1)
        target = CachedTarget(inner, ResponseCache(tmp_path / "c.sqlite"))
        outputs = target.run([replace(TEXT, sample=index) for index in range(3)])
        logging.getLogger("elsewhere").debug("logging is seen")
        seen = [repr(outputs), repr(target), repr(vars(inner)), json.dumps(target.identity), caplog.text]
        target.cache.close()
    assert "logging is seen" in caplog.text
    assert all(call.headers["authorization"] == f"Bearer {KEY}" for call in server.calls)
    assert [output.failure is None for output in outputs] == [False, False, True]
    assert "[redacted]" in str(outputs[0].failure)
    seen.extend(path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())
    assert not [text for text in seen if KEY in text]
    assert not [text for text in seen[:4] if server.url in text]


def test_t12_a_redirect_does_not_carry_the_key_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        MockServer() as thief,
        MockServer(
            faults=lambda number, body: Fault("status", 307, {"location": f"{thief.url}/chat/completions"})
        ) as server,
    ):
        (output,) = make_target(server).run([TEXT])
    assert failure_of(output) == ("http", 1)
    assert thief.calls == []


def test_without_a_key_no_authorization_is_sent() -> None:
    with MockServer() as server:
        make_target(server).run([TEXT])
    assert "authorization" not in server.calls[0].headers


@pytest.mark.parametrize("key", ["", KEY])
def test_t12_passwords_of_netrc_are_not_sent(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login somebody password secret-of-netrc\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setattr(transport, "LOCAL_HOSTS", ())  # as if the server were elsewhere
    with MockServer() as server:
        (output,) = OpenAITarget("m", base_url=server.url, max_attempts=1).run([TEXT])
    assert output.failure is None
    sent = server.calls[0].headers.get("authorization")
    assert sent == (f"Bearer {key}" if key else None)


def test_the_proxy_of_the_environment_is_used_for_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with MockServer() as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        OpenAITarget("m", base_url="http://server.invalid/v1", max_attempts=1).run([TEXT])
        assert len(proxy.calls) == 1
        monkeypatch.setenv("NO_PROXY", "server.invalid")
        (past,) = OpenAITarget("m", base_url="http://server.invalid/v1", max_attempts=1).run([TEXT])
        assert len(proxy.calls) == 1
        make_target(proxy, max_attempts=1).run([TEXT])
    assert failure_of(past) == ("connection", 1)


@pytest.mark.parametrize("proxy", ["https://proxy:3128", "socks5://proxy:1080"])
def test_a_proxy_that_would_be_passed_by_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError, match=f"a proxy of kind {proxy.partition(':')[0]}.*HTTPS_PROXY.*NO_PROXY"):
        OpenAITarget("m", base_url="https://server.invalid/v1")


@pytest.mark.parametrize("host", ["ex..ample", "a" * 64, "xn--a"])
def test_a_host_that_no_name_can_be_is_a_mistake_of_the_configuration(host: str) -> None:
    with pytest.raises(ConfigError, match="base_url is not a URL"):
        OpenAITarget("m", base_url=f"http://{host}/v1")


def test_t12_what_is_no_http_is_told_without_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"no HTTP at all\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        target = OpenAITarget("m", base_url=f"http://LOCALHOST:{port}/secret-tenant/v1", max_attempts=1)
        (output,) = target.run([TEXT])
        thread.join()
    assert failure_of(output) == ("connection", 1)
    assert "secret-tenant" not in str(output.failure)
    assert str(port) not in str(output.failure)
