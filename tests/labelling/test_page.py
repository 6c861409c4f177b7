"""The page in a real Chromium: keystrokes are votes, nothing is lost, and texts stay texts."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from label_server import LabelServer
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from stored_runs import stored_run

from rlprompt.cli.main import main
from rlprompt.preferences import read_pairs, read_votes

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u202e</div> &amp;"
LONG = "\n".join(f"line {number} " + "word " * 30 for number in range(300))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def serve() -> Iterator[Callable[..., LabelServer]]:
    started: list[LabelServer] = []

    def start(run: Path, *arguments: str) -> LabelServer:
        started.append(LabelServer(run, "--annotator", "ann", *arguments))
        return started[-1]

    yield start
    for server in started:
        server.kill()


def _text(driver: Chrome, name: str) -> str:
    return str(driver.execute_script("return document.getElementById(arguments[0]).textContent", name))


def _until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def _open(driver: Chrome, server: LabelServer) -> None:
    driver.get(server.url)
    _until(lambda: driver.find_element(By.ID, "main").get_attribute("data-state") != "loading", "the page")
    time.sleep(0.25)  # keys count once a text has stood for 200 ms


def _press(driver: Chrome, key: str, count: str) -> None:
    """One keystroke, after which the page must show `count`."""
    ActionChains(driver).send_keys(key).perform()
    _until(lambda: _text(driver, "count") == count, f"{count!r} after {key!r}; it is {_text(driver, 'count')!r}")
    time.sleep(0.25)


def _chosen(file: Path) -> list[str]:
    """What each standing vote prefers."""
    return [{"a": vote.a, "b": vote.b}.get(vote.choice, vote.choice) for vote in read_votes(file).votes.values()]


def test_a_keystroke_is_a_vote_and_a_killed_server_goes_on_where_it_was(
    driver: Chrome, serve: Callable[..., LabelServer], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = {f"w0{number}": float(number) for number in range(3)}
    run = stored_run(tmp_path / "run", {"train/0": texts, "train/4": texts})  # 3 comparisons each
    file = run / "votes" / "ann.jsonl"
    server = serve(run)
    _open(driver, server)
    assert _text(driver, "question") == "Which prompt is better?"
    assert _text(driver, "input") in ("item 0", "item 4")
    expected = []
    for done, (key, side) in enumerate([(Keys.ARROW_LEFT, "left"), ("2", "right"), (Keys.SPACE, "tie")], start=1):
        expected.append(side if side == "tie" else _text(driver, side))
        _press(driver, key, f"{done} of 6 judged")
        assert _chosen(file) == expected
    assert _text(driver, "status") == "Equally good. 3 of 6 judged."
    before = [_text(driver, name) for name in ("left", "right")]
    _press(driver, "s", "4 of 6 judged")
    _press(driver, "u", "3 of 6 judged")
    assert [_text(driver, name) for name in ("left", "right")] == before
    _press(driver, Keys.BACKSPACE, "2 of 6 judged")
    expected[2] = _text(driver, "right")
    _press(driver, "d", "3 of 6 judged")
    assert _chosen(file) == expected
    current = driver.find_element(By.ID, "main").get_attribute("data-comparison")
    server.kill()
    ActionChains(driver).send_keys("1").perform()
    _until(lambda: "The server does not answer" in _text(driver, "trouble"), "the page to say so")
    assert _text(driver, "count") == "3 of 6 judged"

    again = serve(run)
    assert again.lines["comparisons"] == "6 of prompts, 3 of them judged already"
    _open(driver, again)
    assert driver.find_element(By.ID, "main").get_attribute("data-comparison") == current
    for done in (4, 5, 6):
        expected.append(_text(driver, "left"))
        _press(driver, "a", f"{done} of 6 judged")
    assert driver.find_element(By.ID, "done").is_displayed()
    assert not driver.find_element(By.ID, "sides").is_displayed()
    assert _text(driver, "command") == f"rlprompt label {run} --export pairs.jsonl"
    assert _chosen(file) == expected
    ActionChains(driver).send_keys("1").perform()  # nothing is left to vote on
    time.sleep(0.1)
    pairs = tmp_path / "pairs.jsonl"
    assert main(["label", str(run), "--export", str(pairs)]) == 0
    assert [pair.chosen for pair in read_pairs(pairs)] == expected
    assert again.interrupt() == (0, "judged       6 of 6\n")


def test_what_a_model_wrote_is_shown_as_text_and_long_texts_scroll(
    driver: Chrome, serve: Callable[..., LabelServer], tmp_path: Path
) -> None:
    answers = {("w01", "train/0"): HOSTILE, ("w02", "train/0"): LONG}
    run = stored_run(tmp_path / "run", {"train/0": {"w01": 1.0, "w02": 0.0}}, answers)
    server = serve(run)
    assert server.lines["comparisons"].startswith("1 of outputs")
    _open(driver, server)
    hostile = "left" if "script" in _text(driver, "left") else "right"
    other = {"left": "right", "right": "left"}[hostile]
    shown = driver.execute_script("return JSON.stringify(document.getElementById(arguments[0]).textContent)", hostile)
    assert json.loads(shown) == HOSTILE
    assert driver.execute_script("return document.querySelectorAll('.text *').length") == 0
    assert driver.execute_script("return window.hacked") is None
    # even markup that got in would not run: the policy of the page forbids it
    inject = (
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 3'; document.body.append(s);"
        "const i = document.createElement('img'); i.src = 'https://example.org/x.png'; document.body.append(i);"
        "return window.hacked"
    )
    assert driver.execute_script(inject) is None
    blocked = [entry["message"] for entry in driver.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert len(blocked) == 2
    box = (
        "const e = document.getElementById(arguments[0]);"
        "return [e.scrollHeight, e.clientHeight, e.scrollWidth, e.clientWidth]"
    )
    height, seen, width, room = driver.execute_script(box, other)
    assert height > 3 * seen > 0
    assert width <= room
    assert driver.execute_script("return document.documentElement.scrollHeight <= window.innerHeight")
    order = ["#input", "#left", "[data-choice=left]", "#right", "[data-choice=right]", "#others", "footer"]
    places = "return arguments[0].map((name) => {const r = document.querySelector(name).getBoundingClientRect();"
    driver.set_window_size(500, 700)
    boxes = driver.execute_script(places + "return [r.top, r.bottom]})", order)
    driver.set_window_size(1200, 800)
    for (_, bottom), (top, _) in itertools.pairwise(boxes):  # nothing covers anything in a small window
        assert bottom <= top


def test_a_bouncing_key_a_held_key_and_an_old_page_do_not_vote(
    driver: Chrome, serve: Callable[..., LabelServer], tmp_path: Path
) -> None:
    run = stored_run(tmp_path / "run", {"train/0": {f"w{number:02d}": float(number) for number in range(5)}})
    file = run / "votes" / "ann.jsonl"
    server = serve(run)
    _open(driver, server)
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    _open(driver, server)
    old = driver.current_window_handle
    driver.switch_to.window(first)
    send = (
        "for (const more of [{}, {}, {repeat: true}]) document.body.dispatchEvent(new KeyboardEvent('keydown',"
        "{key: '1', bubbles: true, cancelable: true, ...more, ...arguments[0]}))"
    )
    driver.execute_script(send, {"ctrlKey": True})
    driver.execute_script(send, {"repeat": True})
    time.sleep(0.1)
    assert _text(driver, "count") == "0 of 10 judged"
    driver.execute_script(send, {})
    _until(lambda: _text(driver, "count") == "1 of 10 judged", "the vote")
    driver.execute_script(send, {})  # the next one has just appeared
    time.sleep(0.1)
    assert len(read_votes(file).votes) == 1
    driver.switch_to.window(old)
    assert _text(driver, "count") == "0 of 10 judged"
    ActionChains(driver).send_keys("2").perform()
    _until(lambda: _text(driver, "trouble").startswith("Not recorded: another comparison"), "the refusal")
    assert _text(driver, "count") == "1 of 10 judged"
    assert len(read_votes(file).votes) == 1
    time.sleep(0.25)
    # a key on a button that has the focus is that button's alone
    driver.find_element(By.CSS_SELECTOR, "[data-choice=skip]").send_keys(Keys.SPACE)
    _until(lambda: _text(driver, "count") == "2 of 10 judged", "the skip")
    assert [vote.choice for vote in read_votes(file).votes.values()][1:] == ["skip"]
    driver.close()
    driver.switch_to.window(first)
