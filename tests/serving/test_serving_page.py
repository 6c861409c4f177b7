"""docs/serving.md names every route, setting, reason and default."""

import re
from pathlib import Path

from rlprompt.serving.preserve import KINDS
from rlprompt.serving.proxy.openapi import DOCUMENT
from rlprompt.serving.proxy.settings import Rewriting, ServeSettings
from rlprompt.serving.rewriter import REASONS

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
ELSEWHERE = {"columns", "meta_prompt", "model", "device", "max_batch", "role", "trigger"}
"""Settings that need no sentence about failures."""


def test_every_route_and_reason_is_named() -> None:
    for path in set(DOCUMENT["paths"]) - {"/health/liveness"}:
        assert path in PAGE, path
    for reason in [*REASONS, *(f"lost-{kind}" for kind in KINDS)]:
        assert f"`{reason}`" in PAGE, reason


def test_every_setting_of_a_failure_is_named_with_its_default() -> None:
    for name, field in Rewriting.model_fields.items():
        if name not in ELSEWHERE:
            assert re.search(rf"`(?:rewriting\.)?{name}(?:=true)?`", PAGE), name
        if isinstance(field.default, (int, float)) and field.default not in (False, None) and f"`{name}` (" in PAGE:
            assert f"`{name}` ({field.default:g})" in PAGE, name
    for name in ServeSettings.model_fields:
        assert name in PAGE, name
    settings = ServeSettings(upstream="http://localhost/v1")
    for value in (settings.port, settings.upstream_timeout_s, settings.receive_timeout_s, settings.max_requests):
        assert f"{value:g}" in PAGE
