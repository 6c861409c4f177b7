import json
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlprompt.errors import ConfigError
from rlprompt.targets.cache import CachedTarget, CacheMode, ResponseCache, cache_key
from rlprompt.targets.streaming import OnAnswer, OnCall
from rlprompt.types import Failure, Json, Rendered, TargetOutput, TargetRequest

REQUEST = TargetRequest(Rendered(text="It was"), choices=(" bad", " good"))


class CountingTarget:
    """Answers with the number of the call, so that a repeated call is seen."""

    def __init__(self, name: str = "a", *, failing: bool = False) -> None:
        self.asked: list[TargetRequest] = []
        self.name = name
        self.failing = failing

    @property
    def identity(self) -> Json:
        return {"kind": "counting", "name": self.name}

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        outputs = []
        for request in requests:
            self.asked.append(request)
            if self.failing:
                outputs.append(TargetOutput(failure=Failure("target", "timeout", "no", 3)))
            else:
                outputs.append(TargetOutput(text=f"call {len(self.asked)}", prompt_tokens=7, completion_tokens=2))
        return outputs

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        return [9] * len(requests)


class StreamingCountingTarget(CountingTarget):
    """Breaks off after the first answer, as a killed process would."""

    def run_streaming(
        self, requests: Sequence[TargetRequest], on_answer: OnAnswer | None, on_call: OnCall | None = None
    ) -> list[TargetOutput]:
        (output,) = self.run(requests[:1])
        if on_answer is not None:
            on_answer(0, output)
        raise KeyboardInterrupt


def cached(folder: Path, target: CountingTarget, mode: CacheMode = "on") -> CachedTarget:
    return CachedTarget(target, ResponseCache(folder / "c.sqlite", read_only=mode == "read-only"), mode)


def test_a_hit_keeps_the_usage_and_is_marked(tmp_path: Path) -> None:
    target = CountingTarget()
    wrapped = cached(tmp_path, target)
    (first,) = wrapped.run([REQUEST])
    (second,) = wrapped.run([REQUEST])
    assert (first.cached, second.cached) == (False, True)
    assert replace(second, cached=False) == first
    assert len(target.asked) == 1


def test_all_kinds_of_answers_come_back_bit_equal(tmp_path: Path) -> None:
    answers = {
        "text": TargetOutput(text='Zoë "ok"\n\u2028', prompt_tokens=3),
        "choices": TargetOutput(choice_logprobs=(-0.1, -2.302585092994046, float("-inf"))),
        "logprob": TargetOutput(logprob=-1.0000000000000002),
        "payload": TargetOutput(payload={"image": [1, 2]}),
    }
    with ResponseCache(tmp_path / "c.sqlite") as cache:
        for key, output in answers.items():
            cache.put(key, output)
    with ResponseCache(tmp_path / "c.sqlite") as cache:
        for key, output in answers.items():
            assert cache.get(key) == replace(output, cached=True)


@pytest.mark.parametrize(
    "output", [TargetOutput(payload=(1, 2)), TargetOutput(payload=object())], ids=["tuple", "object"]
)
def test_a_payload_that_json_would_change_is_not_stored(tmp_path: Path, output: TargetOutput) -> None:
    with ResponseCache(tmp_path / "c.sqlite") as cache:
        cache.put("k", output)
        assert cache.get("k") is None


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, temperature=0.7),
        replace(REQUEST, temperature=1e-9),
        replace(REQUEST, seed=1),
        replace(REQUEST, sample=1),
        replace(REQUEST, choices=(" good", " bad")),
        replace(REQUEST, choices=(" bad", " good", " ok")),
        replace(REQUEST, choices=None),
        replace(REQUEST, continuation="x"),
        replace(REQUEST, max_tokens=1),
        replace(REQUEST, stop=("\n",)),
        replace(REQUEST, rendered=Rendered(text="It was ")),
        replace(REQUEST, rendered=Rendered(messages=(("user", "It was"),))),
    ],
)
def test_t11_requests_that_may_be_answered_differently_never_share(other: TargetRequest) -> None:
    assert cache_key({"model": "m"}, REQUEST) != cache_key({"model": "m"}, other)
    assert cache_key({"model": "m"}, REQUEST) != cache_key({"model": "n"}, REQUEST)


def test_the_split_is_a_hint_and_does_not_part_answers(tmp_path: Path) -> None:
    target = CountingTarget()
    hinted = replace(REQUEST, rendered=Rendered(text="It was", split=3))
    outputs = cached(tmp_path, target).run([REQUEST, hinted])
    assert [output.text for output in outputs] == ["call 1", "call 1"]
    assert len(target.asked) == 1


def test_t11_equal_requests_of_a_call_are_asked_once_but_samples_each(tmp_path: Path) -> None:
    target = CountingTarget()
    hot = replace(REQUEST, temperature=1.0)
    requests = [hot, replace(hot, sample=1), hot, replace(hot, sample=1)]
    outputs = cached(tmp_path, target).run(requests)
    assert [output.text for output in outputs] == ["call 1", "call 2", "call 1", "call 2"]
    assert [output.cached for output in outputs] == [False, False, True, True]
    assert len(target.asked) == 2


def test_failures_are_never_stored_and_a_repetition_is_not_sent(tmp_path: Path) -> None:
    target = CountingTarget(failing=True)
    wrapped = cached(tmp_path, target)
    first, repeated = wrapped.run([REQUEST, REQUEST])
    assert first.failure is not None
    assert repeated.failure is not None
    assert (first.failure.attempts, repeated.failure.attempts) == (3, 0)
    target.failing = False
    assert wrapped.run([REQUEST])[0].text == "call 2"


def test_modes_read_and_write_as_they_say(tmp_path: Path) -> None:
    target = CountingTarget()
    other = replace(REQUEST, max_tokens=5)
    assert cached(tmp_path, target, "on").run([REQUEST])[0].text == "call 1"
    assert cached(tmp_path, target, "off").run([REQUEST])[0].text == "call 2"
    read_only = cached(tmp_path, target, "read-only")
    assert [output.text for output in read_only.run([REQUEST, other])] == ["call 1", "call 3"]
    assert cached(tmp_path, target, "refresh").run([REQUEST])[0].text == "call 4"
    assert cached(tmp_path, target, "on").run([REQUEST])[0].text == "call 4"
    assert cached(tmp_path, target, "on").run([other])[0].text == "call 5"  # read-only stored nothing


def test_read_only_makes_no_file(tmp_path: Path) -> None:
    wrapped = cached(tmp_path / "none", CountingTarget(), "read-only")
    assert wrapped.run([REQUEST])[0].text == "call 1"
    assert not (tmp_path / "none").exists()


def test_an_unknown_mode_offers_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown cache mode 'readonly'; did you mean 'read-only'\?"):
        CachedTarget(CountingTarget(), ResponseCache(tmp_path / "c.sqlite"), "readonly")  # type: ignore[arg-type]


def test_folder_and_file_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLPROMPT_CACHE_DIR", str(tmp_path / "own"))
    with ResponseCache() as cache:
        cache.put("k", TargetOutput(text="x"))
        assert cache.path == tmp_path / "own" / "answers.sqlite"
        assert stat.S_IMODE(cache.path.parent.stat().st_mode) == 0o700
        for file in cache.path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


@pytest.mark.parametrize(
    "change",
    [
        'UPDATE answers SET value = \'{"text": "forged"}\'',
        "UPDATE answers SET value = 'not json'",
        "UPDATE answers SET value = substr(value, 1, 20)",
        "UPDATE answers SET digest = ''",
        "UPDATE answers SET value = x'80ff'",
    ],
)
def test_t11_damaged_rows_are_deleted_and_asked_again(tmp_path: Path, change: str) -> None:
    target = CountingTarget()
    wrapped = cached(tmp_path, target)
    wrapped.run([REQUEST])
    other = sqlite3.connect(tmp_path / "c.sqlite")
    with other:
        other.execute(change)
    other.close()
    assert wrapped.cache.get(cache_key(target.identity, REQUEST)) is None
    assert wrapped.cache.size() == (0, 0)
    assert wrapped.run([REQUEST])[0].text == "call 2"
    assert wrapped.run([REQUEST])[0].text == "call 2"


def test_a_row_moved_to_another_key_is_not_believed(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "c.sqlite") as cache:
        cache.put("mine", TargetOutput(text="x"))
        other = sqlite3.connect(cache.path)
        with other:
            other.execute("UPDATE answers SET key = 'yours'")
        other.close()
        assert cache.get("yours") is None


def test_t11_the_size_cap_holds_and_the_oldest_go_first(tmp_path: Path) -> None:
    limit = 200_000
    with ResponseCache(tmp_path / "c.sqlite", max_bytes=limit) as cache:
        for index in range(500):
            cache.put(f"{index:064d}", TargetOutput(text="x" * 1000))
            assert cache.size()[1] <= limit
        count, _ = cache.size()
        kept = [index for index in range(500) if cache.get(f"{index:064d}") is not None]
    assert kept == list(range(500 - count, 500))
    assert count > 100  # a row takes about 1,400 bytes
    assert cache.path.stat().st_size < 1.5 * limit


def test_t11_threads_and_processes_write_at_the_same_time(tmp_path: Path) -> None:
    program = (
        "import sys, threading\n"
        "from rlprompt.targets.cache import ResponseCache\n"
        "from rlprompt.types import TargetOutput\n"
        "def work(thread):\n"
        "    for index in range(10):\n"
        "        cache.put(f'{sys.argv[2]}-{thread}-{index}', TargetOutput(text='x' * 200))\n"
        "        cache.put('shared', TargetOutput(text='same'))\n"
        "        assert cache.get('shared').text == 'same'\n"
        "cache = ResponseCache(sys.argv[1])\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    path = tmp_path / "c.sqlite"
    arguments = [sys.executable, "-c", program, str(path)]
    processes = [subprocess.Popen([*arguments, str(n)], stderr=subprocess.PIPE, text=True) for n in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    with ResponseCache(path) as cache:
        assert cache.size()[0] == 3 * 4 * 10 + 1


def test_one_cached_target_serves_many_threads(tmp_path: Path) -> None:
    target = CountingTarget()
    wrapped = cached(tmp_path, target)
    requests = [replace(REQUEST, sample=index) for index in range(20)]
    wrapped.run(requests)
    results: list[list[TargetOutput]] = []
    threads = [threading.Thread(target=lambda: results.append(wrapped.run(requests))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(target.asked) == 20
    assert [[output.text for output in result] for result in results] == [[f"call {n + 1}" for n in range(20)]] * 8


def test_answers_that_arrived_before_a_stop_are_kept(tmp_path: Path) -> None:
    target = StreamingCountingTarget()
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, target).run([REQUEST, replace(REQUEST, sample=1)])
    assert cached(tmp_path, CountingTarget()).run([REQUEST])[0] == TargetOutput(
        text="call 1", prompt_tokens=7, completion_tokens=2, cached=True
    )


def test_a_fork_does_not_share_the_connection(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "c.sqlite") as cache:
        cache.put("k", TargetOutput(text="x"))
        child = os.fork()
        if child == 0:  # in the child: only the exit status speaks
            found = cache.get("k")
            cache.put("child", TargetOutput(text="y"))
            os._exit(0 if found is not None and found.text == "x" else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert cache.get("child") == TargetOutput(text="y", cached=True)


def test_a_cache_that_breaks_while_it_works_costs_a_warning_and_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = CountingTarget()
    wrapped = cached(tmp_path, target)
    other = sqlite3.connect(tmp_path / "c.sqlite")
    with other:
        other.execute("DROP TABLE answers")
    other.close()
    with caplog.at_level(logging.WARNING):
        assert wrapped.run([REQUEST])[0].text == "call 1"
        assert wrapped.run([REQUEST])[0].text == "call 2"
    assert sum("going on without it" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_cache_is_a_one_line_error(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"this is no database, it is prose\n" * 40)
    with pytest.raises(ConfigError, match=r"cannot use the cache .*c\.sqlite: .*; delete the file") as caught:
        ResponseCache(path, read_only=read_only)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot use the cache"):
        ResponseCache(tmp_path / "file" / "c.sqlite")


def test_t1_the_file_holds_json_and_nothing_that_runs(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "c.sqlite") as cache:
        cache.put("k", TargetOutput(text="x", payload={"__reduce__": ["os.system", "touch canary"]}))
        (value,) = sqlite3.connect(cache.path).execute("SELECT value FROM answers").fetchone()
        assert json.loads(value)["payload"] == {"__reduce__": ["os.system", "touch canary"]}
        found = cache.get("k")
        assert found is not None
        assert found.payload == {"__reduce__": ["os.system", "touch canary"]}
