import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlprompt import registry
from rlprompt.config import BudgetConfig, TargetConfig
from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.targets import Ledger, Price, load_target, target_from_config, target_prices
from rlprompt.targets.cache import CachedTarget
from rlprompt.targets.openai import OpenAITarget
from rlprompt.targets.planted import PlantedTarget
from rlprompt.types import Json, TargetOutput, TargetRequest

URL = "http://localhost:9/v1"


class PlugInTarget:
    def __init__(self, place: str, *, depth: int = 1) -> None:
        self.place = place
        self.depth = depth

    @property
    def identity(self) -> Json:
        return {"kind": "plug-in", "place": self.place}

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        return [TargetOutput(text=self.place) for _ in requests]

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        return [1] * len(requests)


class RecordingModel(PlugInTarget):
    """Stands for the transformers target: takes the same arguments and keeps them."""

    def __init__(self, name: str, *, dtype: str, device: str, revision: str | None, batch_tokens: int = 1) -> None:
        super().__init__(name)
        self.arguments = (name, dtype, device, revision, batch_tokens)


@pytest.fixture(autouse=True)
def _targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resolve = registry.resolve
    own = {"plug-in": PlugInTarget, "transformers": RecordingModel}
    table = {**registry.names("targets"), "plug-in": "some_package:PlugInTarget"}
    monkeypatch.setattr(registry, "names", lambda group: table)
    monkeypatch.setattr(registry, "resolve", lambda group, name: own[name] if name in own else resolve(group, name))
    monkeypatch.setenv("RLPROMPT_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_names_with_a_colon_choose_the_kind_of_target() -> None:
    planted = load_target("planted:chained", length=4, seed=2)
    assert isinstance(planted, PlantedTarget)
    assert (planted.identity["landscape"], planted.identity["length"]) == ("chained", 4)
    api = load_target("openai:org/model:free", base_url=URL)
    assert isinstance(api, OpenAITarget)
    assert api.model == "org/model:free"
    plug_in = load_target("plug-in:there", depth=3)
    assert isinstance(plug_in, PlugInTarget)
    assert (plug_in.place, plug_in.depth) == ("there", 3)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "org/model", "./folder", "transformers:org/model"])
def test_other_names_are_models_that_run_here(name: str) -> None:
    target = load_target(name, dtype="float32", device="cpu", revision="abc", batch_tokens=9)
    assert isinstance(target, RecordingModel)
    assert target.arguments == (name.removeprefix("transformers:"), "float32", "cpu", "abc", 9)


def test_a_folder_with_a_colon_in_its_name_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert isinstance(load_target(str(tmp_path / "a:b")), RecordingModel)


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("planted:chaned", {}, r"unknown landscape 'chaned'; did you mean 'chained'\?"),
        ("planed:chained", {}, r"unknown kind of target 'planed'; did you mean 'planted'\?"),
        ("planted:", {}, "write it as planted:NAME"),
        (
            "planted:chained",
            {"lenght": 3},
            r"unknown argument of target 'planted' 'lenght'; did you mean 'length'\?",
        ),
        ("planted:chained", {"landscape": "pairs"}, "unknown argument of target 'planted' 'landscape'"),
        ("openai:m", {"api_key": "sk-secretword", "base_url": URL}, r"did you mean 'api_key_env'\?"),
        ("some-model", {"batch_token": 1}, "did you mean 'batch_tokens'"),
        ("openai:m", {"revision": "main", "base_url": URL}, "has no revisions"),
        ("planted:chained", {"cache": "onn"}, r"unknown cache mode 'onn'; did you mean 'on'"),
        ("planted:chained", {"cache": "on", "cache_bytes": 0}, "cache_bytes must be at least 1"),
        ("openai:m", {}, "set OPENAI_BASE_URL"),
    ],
)
def test_a_mistake_is_a_one_line_error_that_helps(name: str, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_target(name, **arguments)
    assert "\n" not in str(caught.value)
    assert "secretword" not in str(caught.value)


def test_an_unknown_landscape_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_target("planted:separabel")
    assert caught.value.exit_code == 2
    assert "separable" in caught.value.known


def test_a_cache_is_wrapped_around_unless_it_is_off(tmp_path: Path) -> None:
    assert isinstance(load_target("planted:chained", cache="off"), PlantedTarget)
    wrapped = load_target("planted:chained", cache="refresh", cache_bytes=1000)
    assert isinstance(wrapped, CachedTarget)
    assert (wrapped.mode, wrapped.cache.max_bytes) == ("refresh", 1000)
    assert wrapped.cache.path == tmp_path / "answers.sqlite"
    elsewhere = load_target("planted:chained", cache="on", cache_path=tmp_path / "x" / "y.sqlite")
    assert isinstance(elsewhere, CachedTarget)
    assert (tmp_path / "x" / "y.sqlite").is_file()


def test_a_configuration_names_target_cache_and_arguments() -> None:
    config = TargetConfig(name="openai:m", cache="on", dtype="float32", kwargs={"base_url": URL, "concurrency": 2})
    target = target_from_config(config)
    assert isinstance(target, CachedTarget)
    assert target.identity["model"] == "m"
    with pytest.raises(ConfigError, match=r"target\.kwargs\.dtype is not allowed; set target\.dtype"):
        target_from_config(TargetConfig(name="x", kwargs={"dtype": "float32"}))


def test_prices_are_zero_here_listed_for_an_api_and_else_unknown() -> None:
    listed = {"prompt_usd_per_token": 1e-6, "completion_usd_per_token": 2e-6}
    assert target_prices(load_target("planted:chained", cache="on")) == {"target": Price()}
    priced = load_target("openai:m", base_url=URL, price=listed, cache="on")
    assert target_prices(priced) == {"target": Price(1e-6, 2e-6)}
    for unknown in (load_target("openai:m", base_url=URL), load_target("plug-in:x")):
        with pytest.raises(ConfigError, match="price of the target is unknown"):
            Ledger(BudgetConfig(max_cost_usd=1.0), prices=target_prices(unknown))


def test_importing_targets_is_cheap() -> None:
    program = "import rlprompt.targets, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {
        "torch",
        "transformers",
        "httpx",
        "aiohttp",
        "tenacity",
        "pydantic",
        "ray",
        "gymnasium",
        "sqlite3",
    }
