"""The playground in a real browser: type, rewrite, compare, an error, a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from raw_upstream import RawUpstream
from running_proxy import FakeRewriter, running_proxy
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from rlprompt.serving.proxy.supervisor import RewriterError

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


def shown(page: Chrome, name: str) -> str:
    return page.find_element(By.ID, name).text


def ask(page: Chrome, text: str, button: str) -> None:
    box = page.find_element(By.ID, "text")
    box.clear()
    box.send_keys(text)
    page.find_element(By.ID, button).click()
    WebDriverWait(page, 20).until(lambda at: at.find_element(By.ID, "rewrite").is_enabled() and not shown(at, "state"))


def errors(page: Chrome) -> list[Any]:
    return [line for line in page.get_log("browser") if line["level"] == "SEVERE"]  # type: ignore[no-untyped-call]


def test_type_rewrite_compare(page: Chrome, upstream: RawUpstream) -> None:
    with running_proxy(upstream.url) as (address, _):
        page.get(address)
        ask(page, "Name a <b>colour</b>", "rewrite")
        assert shown(page, "original") == "Name a <b>colour</b>"
        assert shown(page, "rewritten") == "Please: Name a <b>colour</b>"
        assert shown(page, "verdict").endswith(" s)")
        assert shown(page, "rewritten-answer") == ""
        ask(page, "Name a colour", "compare")
        assert shown(page, "original-answer") == shown(page, "rewritten-answer") == "fine"
        assert errors(page) == []
    asked = [one.body for one in upstream.seen if one.path.endswith("/chat/completions")]
    assert sorted(b"Please: " in body for body in asked) == [False, True]  # each once, and not rewritten twice
    assert all(body.count(b"Please: ") <= 1 for body in asked)


def test_a_fallback_says_why(page: Chrome, upstream: RawUpstream) -> None:
    with running_proxy(upstream.url, FakeRewriter(lambda text: RewriterError("timeout"))) as (address, _):
        page.get(address)
        ask(page, "Name a colour", "rewrite")
        assert shown(page, "rewritten") == "Name a colour"
        assert shown(page, "verdict") == "(fallback: timeout)"


def test_an_error_is_shown_and_the_page_goes_on(page: Chrome, upstream: RawUpstream) -> None:
    with running_proxy(upstream.url, keys=(KEY,)) as (address, _):
        page.get(address)
        ask(page, "Name a colour", "compare")
        assert shown(page, "error").startswith("401: no valid key")
        page.find_element(By.ID, "key").send_keys(KEY)
        page.find_element(By.ID, "model").send_keys("status-503")
        ask(page, "Name a colour", "compare")
        assert shown(page, "error") == "503: bad"
        assert shown(page, "rewritten") == "Please: Name a colour"
        page.find_element(By.ID, "model").clear()
        ask(page, "Name a colour", "compare")
        assert not page.find_element(By.ID, "error").is_displayed()
        assert shown(page, "original-answer") == "fine"


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Chrome, upstream: RawUpstream, tmp_path: Path) -> None:
    size = page.get_window_size()
    with running_proxy(upstream.url) as (address, _):
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
        )
        try:
            page.get(address)
            ask(page, "Name a colour " + "x" * 200, "compare")
            wide = page.execute_script("return document.documentElement.scrollWidth")  # type: ignore[no-untyped-call]
            assert wide <= 360
            sides = page.find_elements(By.CSS_SELECTOR, "article")
            assert sides[0].location["y"] < sides[1].location["y"]  # one below the other
        finally:
            page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            page.set_window_size(size["width"], size["height"])
