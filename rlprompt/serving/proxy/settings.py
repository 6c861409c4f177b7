"""What an operator decides about a server: `rlprompt serve` and its YAML file say it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlprompt.sections import Section
from rlprompt.serving.preserve import KINDS, Kept
from rlprompt.serving.proxy.caps import Caps
from rlprompt.serving.triggers import Trigger


class Rewriting(Section):
    """When a rewrite is used, and what happens where there is none."""

    deadline_s: float = Field(default=10.0, gt=0)
    """A request waits for its rewrite so long, and then goes on as it came."""
    fail_closed: bool = False
    """Answers 503 where a rewrite fails, in the place of the request as it came."""
    role: str = "user"
    """Whose last message is rewritten."""
    trigger: Trigger = Trigger()
    preserve: tuple[Kept, ...] = KINDS
    """What a rewrite must keep, where the text is replaced."""
    min_similarity: float | None = Field(default=None, ge=-1, le=1)
    """Least cosine similarity of text and rewrite under a sentence encoder; null does not compare them."""
    max_growth: float = Field(default=20.0, gt=0)
    """Most characters of a result for each of the text, 2,000 more are always allowed."""
    breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row after which requests do not wait for a rewriter."""
    breaker_pause_s: float = Field(default=10.0, gt=0)
    max_waiting: int = Field(default=256, ge=1)
    """Requests that may wait for the rewriter; more go on as they came."""
    max_batch: int = Field(default=14, ge=1)
    hang_s: float = Field(default=60.0, gt=0)
    """A rewriter that says nothing for so long, while requests wait, is started again."""
    cache_entries: int = Field(default=10_000, ge=0)
    columns: dict[str, str] = Field(default_factory=dict)
    """Values of the fields that the run's template reads besides the text."""
    meta_prompt: str | None = None
    model: str | None = None
    """The policy's frozen LM, where it is not found under its saved name."""
    device: str = "auto"


class Experiment(Section):
    """What is measured with real requests."""

    mode: Literal["all", "shadow", "percentage"] = "all"
    """Rewrites all requests; all, but sends them as they came; or a share of them."""
    percentage: float = Field(default=100.0, ge=0, le=100)
    """Of the users' texts, chosen by the text alone: one text is always in the same arm."""


class ServeSettings(Section):
    """A server."""

    upstream: str
    """The address of the LLM's API up to and with /v1."""
    host: str = "127.0.0.1"
    port: int = Field(default=8800, ge=0, le=65535)
    upstream_timeout_s: float = Field(default=600.0, gt=0)
    """Until the upstream begins to answer, and between two pieces of its answer."""
    receive_timeout_s: float = Field(default=30.0, gt=0)
    """Until a request has come whole."""
    max_requests: int = Field(default=512, ge=1)
    """That are worked on at once; others get 429."""
    drain_s: float = Field(default=30.0, ge=0)
    """What has begun may take so long after the server was told to end."""
    log_prompts: bool = False
    """Writes the first 200 characters of texts and rewrites into the log."""
    caps: Caps = Caps()
    rewriting: Rewriting = Rewriting()
    experiment: Experiment = Experiment()

    @model_validator(mode="after")
    def _is_address(self) -> ServeSettings:
        if not self.upstream.startswith(("http://", "https://")):
            raise ValueError(f"upstream must be http:// or https://, got '{self.upstream}'")
        if "@" in self.upstream.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError("upstream must not hold a password; put the key into RLPROMPT_UPSTREAM_API_KEY")
        return self
