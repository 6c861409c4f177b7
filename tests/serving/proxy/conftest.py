"""One upstream for each test, and no keys of the developer's."""

from collections.abc import Iterator

import pytest
from raw_upstream import RawUpstream, raw_upstream


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawUpstream]:
    for name in ("OPENAI_API_KEY", "RLPROMPT_UPSTREAM_API_KEY", "RLPROMPT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with raw_upstream() as state:
        yield state
