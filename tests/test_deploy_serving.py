"""The serving image: what it copies, what compose says, and its own command with nothing else installed."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from raw_upstream import raw_upstream

from rlprompt import __version__
from rlprompt.config import PolicyConfig
from rlprompt.policies import build_policy
from rlprompt.served import Served

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "serve.Dockerfile").read_text(encoding="utf-8")
REQUIRED = [
    line
    for line in (ROOT / "requirements-serve.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
KEY = "a-key-of-sixteen-characters"
BLOCKER = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {blocked!r} else found(name, path, target)

PathFinder.find_spec = find_spec
"""
"""Blocked modules are not found, as if they were not installed."""


def installed_with(names: list[str]) -> set[str]:
    """Returns these distributions and what they need, without extras, by normalised name."""
    found: set[str] = set()
    waiting = [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(normal(needed.name))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def blocked() -> set[str]:
    """Top-level modules of all that is installed here and would not be in the image."""
    allowed = installed_with(REQUIRED) | {"rlprompt", "pip", "setuptools", "wheel"}
    owners: dict[str, set[str]] = {}
    for module, names in metadata.packages_distributions().items():
        owners[module] = {normal(name) for name in names}
    return {module for module, names in owners.items() if not names & allowed}


def test_the_image_copies_what_is_there_and_ends_as_somebody_else() -> None:
    copied = [name for line in DOCKERFILE.splitlines() if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"rlprompt", "envs", "policies", "rewards", "requirements-serve.txt"} < set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert f"-t rlprompt-serve:{__version__} ." in DOCKERFILE
    assert "\nUSER rlprompt\n" in DOCKERFILE
    assert "/health/readiness" in DOCKERFILE


def test_compose_asks_for_a_key_and_opens_a_port_of_this_machine_only() -> None:
    service: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"][
        "rewriter"
    ]
    assert service["image"] == f"rlprompt-serve:{__version__}"
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["environment"]["RLPROMPT_API_KEY"].startswith("${RLPROMPT_API_KEY:?")
    assert service["ports"] == ["127.0.0.1:8800:8800"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_what_is_required_is_in_the_lock_and_leaves_training_out() -> None:
    locked = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {normal(name) for name in REQUIRED} <= {normal(name) for name in locked}
    assert {"ray", "trl", "gymnasium", "datasets", "pettingzoo", "tensorboard"} <= blocked()


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The image's entry point, with the policy where it is here."""
    config = PolicyConfig(kind="causal-lm", model="planted-50", kwargs={"lora": {"r": 2, "targets": ["c_attn"]}})
    policy = build_policy(config, prompt_length=3, seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.ones_like(parameter))
    served = Served(mode="instance", template="{input} {prompt}", meta_prompt="w01 {input} w02")
    policy.save(tmp_path / "policy", served.model_dump(mode="json"))
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    words = [str(tmp_path / "policy") if word == "/policy" else word for word in json.loads(entry)]
    assert words[0] == "rlprompt"
    return [sys.executable, "-m", *words]


def test_the_image_s_command_serves_with_nothing_else_installed(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked()))
    with raw_upstream() as upstream:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")}
        environment |= {"PYTHONPATH": str(tmp_path / "site"), "RLPROMPT_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [*command, "--upstream", upstream.url, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stderr is not None
        try:
            said = [process.stderr.readline() for _ in range(2)]
            assert " at http" in said[-1], said + process.stderr.readlines()
            port = said[-1].split(" at ")[1].split("/v1")[0].rpartition(":")[2]
            reply = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json={"model": "ok", "messages": [{"role": "user", "content": "w03"}]},
                headers={"authorization": f"Bearer {KEY}"},
                timeout=60,
            )
        finally:
            process.terminate()
            process.wait(30)
    assert (reply.status_code, reply.headers["x-rlprompt-rewritten"]) == (200, "1")
    assert json.loads(upstream.seen[0].body)["messages"][0]["content"].startswith("w03 ")
