"""The routes of the page: who may use them, what they record, and what they refuse."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rlprompt.errors import ConfigError
from rlprompt.labelling.app import label_app
from rlprompt.labelling.session import LabelSession
from rlprompt.preferences import Candidate, VoteFile, VoteHeader, read_votes
from rlprompt.preferences.comparisons import Comparison, Shown

TOKEN = "secret-token"
JSON = {"content-type": "application/json"}


def _comparison(number: int) -> Comparison:
    a, b = (Shown(Candidate(f"{number}{side}"), f"text {number}{side} \ud800") for side in "ab")
    return Comparison("outputs", "train/0", "read this", a, b)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[VoteFile]:
    with VoteFile(tmp_path / "votes.jsonl", VoteHeader("run", "id", "ann")) as opened:
        yield opened


@pytest.fixture
def client(file: VoteFile) -> TestClient:
    session = LabelSession([_comparison(number) for number in range(3)], file, seed=0, facts={"run": "run"})

    def export() -> str:
        if not session.votes():
            raise ConfigError("no pairs yet")
        return '{"id": 1}\n'

    return TestClient(label_app(session, export, token=TOKEN, host="box.local"), base_url="http://127.0.0.1:8000")


def _post(client: TestClient, path: str, body: Any, **headers: str) -> Any:
    return client.post(f"/{TOKEN}/{path}", content=json.dumps(body), headers={**JSON, **headers})


def test_votes_go_to_the_file_by_the_side_that_was_shown(client: TestClient, file: VoteFile) -> None:
    state = client.get(f"/{TOKEN}/state").json()
    assert (state["judged"], state["total"], state["last"], state["run"]) == (0, 3, None, "run")
    for number, choice in enumerate(("left", "right", "tie"), start=1):
        shown = state["comparison"]
        assert shown["input"] == "read this"
        state = _post(client, "vote", {"comparison": shown["id"], "choice": choice}).json()
        vote = read_votes(file.path).votes[number]
        assert vote.comparison == shown["id"]
        wanted = shown.get(choice, "")
        assert {"a": f"text {vote.a} \ud800", "b": f"text {vote.b} \ud800"}.get(vote.choice, "") == wanted
        assert shown["left"] == {"a": f"text {vote.a} \ud800", "b": f"text {vote.b} \ud800"}[vote.left]
        assert (state["judged"], state["last"]) == (number, number)
    assert state["comparison"] is None
    state = _post(client, "undo", {"vote": 3}).json()
    assert (state["comparison"]["id"], state["last"]) == (shown["id"], 2)


def test_a_vote_on_another_comparison_and_a_second_undo_change_nothing(client: TestClient, file: VoteFile) -> None:
    first = client.get(f"/{TOKEN}/state").json()["comparison"]["id"]
    assert _post(client, "vote", {"comparison": first, "choice": "left"}).status_code == 200
    again = _post(client, "vote", {"comparison": first, "choice": "left"})
    assert again.status_code == 409
    assert again.json()["error"] == "another comparison is asked now; nothing was recorded"
    assert again.json()["comparison"]["id"] != first
    assert _post(client, "undo", {"vote": 1}).status_code == 200
    assert _post(client, "undo", {"vote": 1}).status_code == 409
    assert len(file.path.read_bytes().splitlines()) == 3  # header, vote, undo


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (404, "/wrong/vote", {}),
        (404, f"/{TOKEN}x/vote", {}),
        (421, f"/{TOKEN}/vote", {"host": "evil.example:8000"}),
        (421, f"/{TOKEN}/vote", {"host": "127.0.0.1.evil.example"}),
        (403, f"/{TOKEN}/vote", {"origin": "http://evil.example"}),
        (403, f"/{TOKEN}/vote", {"origin": "null"}),
        (403, f"/{TOKEN}/vote", {"origin": "http://127.0.0.1:9"}),
        (415, f"/{TOKEN}/vote", {"content-type": "text/plain"}),
        (413, f"/{TOKEN}/vote", {"content-length": "5000"}),
    ],
)
def test_requests_of_others_record_nothing(
    status: int, path: str, headers: dict[str, str], client: TestClient, file: VoteFile
) -> None:
    comparison = client.get(f"/{TOKEN}/state").json()["comparison"]["id"]
    body = json.dumps({"comparison": comparison, "choice": "left"})
    assert client.post(path, content=body, headers={**JSON, **headers}).status_code == status
    assert file.votes == {}
    good = {**JSON, "origin": "http://127.0.0.1:8000"}
    assert client.post(f"/{TOKEN}/vote", content=body, headers=good).status_code == 200


@pytest.mark.parametrize("host", ["localhost:9000", "[::1]:8000", "192.168.0.7", "box.local:80"])
def test_addresses_localhost_and_the_name_asked_for_are_its_own(host: str, client: TestClient) -> None:
    assert client.get(f"/{TOKEN}/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("body", [{}, {"comparison": "x", "choice": "best"}, {"comparison": 1, "choice": "left"}, []])
def test_a_vote_of_another_form_is_refused(body: Any, client: TestClient, file: VoteFile) -> None:
    assert _post(client, "vote", body).status_code == 422
    assert file.votes == {}


def test_the_page_comes_whole_and_with_a_policy(client: TestClient) -> None:
    page = client.get(f"/{TOKEN}/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("label.css", "label.js"):
        assert name in page.text
        assert client.get(f"/{TOKEN}/{name}").status_code == 200
    assert "//" not in page.text.replace("<!doctype", "")  # nothing is fetched from elsewhere
    for answer in (page, client.get("/"), client.get(f"/{TOKEN}/state")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
    for path in ("server.py", "../app.py", "%2e%2e/app.py", "page/label.html"):
        assert client.get(f"/{TOKEN}/{path}").status_code == 404


def test_pairs_can_be_downloaded_once_there_are_any(client: TestClient) -> None:
    missing = client.get(f"/{TOKEN}/pairs.jsonl")
    assert (missing.status_code, missing.text) == (404, "no pairs yet\n")
    comparison = client.get(f"/{TOKEN}/state").json()["comparison"]["id"]
    _post(client, "vote", {"comparison": comparison, "choice": "left"})
    found = client.get(f"/{TOKEN}/pairs.jsonl")
    assert found.text == '{"id": 1}\n'
    assert "pairs.jsonl" in found.headers["content-disposition"]


def test_a_vote_that_cannot_be_written_is_told_of_and_leaves_the_file_whole(client: TestClient, file: VoteFile) -> None:
    comparison = client.get(f"/{TOKEN}/state").json()["comparison"]["id"]
    before = file.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))  # as a disk with room for ten bytes
    try:
        answer = _post(client, "vote", {"comparison": comparison, "choice": "left"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answer.status_code == 507
    assert answer.json()["error"].startswith("cannot write the votes")
    assert answer.json()["judged"] == 0
    assert file.path.read_bytes() == before
    assert _post(client, "vote", {"comparison": comparison, "choice": "left"}).json()["judged"] == 1
