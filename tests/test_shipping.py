"""Which code goes along to workers on other machines."""

from pathlib import Path
from typing import Any

import pytest

from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.registry import source_of
from rlprompt.shipping import Shipment, shipment


def make_config(kind: str, **sections: Any) -> RunConfig:
    return parse_config(
        {"policy": {"kind": kind}, "ray": {"address": "auto", "num_env_runners": 1}, "env": {"num_envs": 4}, **sections}
    )


def test_on_this_machine_nothing_is_sent(tmp_path: Path) -> None:
    here: list[dict[str, Any]] = [{"address": "local", "num_env_runners": 2}, {"address": "auto"}]
    for ray in here:
        assert shipment(make_config("their_policy:Policy", ray=ray), search_path=tmp_path) is None


def test_built_in_policies_need_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.py").touch()
    assert shipment(make_config("lm-adaptor"), search_path=tmp_path) == Shipment()


def test_of_a_module_beside_the_configuration_its_neighbours_go_along(tmp_path: Path) -> None:
    for name in ("shipped_policy.py", "helper.py", "not-a-module.py", "notes.txt"):
        (tmp_path / name).touch()
    for name in ("package", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "data" / "rows.jsonl").touch()
    found = shipment(make_config("shipped_policy:Policy"), search_path=tmp_path)
    assert found is not None
    assert found.modules == ("shipped_policy",)
    assert [path.name for path in found.files] == ["helper.py", "package", "shipped_policy.py"]


def test_names_of_the_standard_library_and_of_installed_packages_stay_behind(tmp_path: Path) -> None:
    for name in ("their_policy.py", "random.py", "types.py", "yaml.py", "rlprompt.py", "their_helper.py"):
        (tmp_path / name).touch()
    found = shipment(make_config("their_policy:Policy"), search_path=tmp_path)
    assert found is not None
    assert [path.name for path in found.files] == ["their_helper.py", "their_policy.py"]


def test_agents_have_code_of_their_own_and_each_module_goes_once(tmp_path: Path) -> None:
    for name in ("first_policy.py", "second_policy.py"):
        (tmp_path / name).touch()
    agents = [
        {"name": "a", "length": 2, "kind": "second_policy:A"},
        {"name": "b", "length": 3, "kind": "second_policy:B"},
    ]
    config = make_config(
        "first_policy:Policy", env={"kind": "multi", "agents": agents, "prompt_length": 5}, algorithm={"name": "ppo"}
    )
    found = shipment(config, search_path=tmp_path)
    assert found is not None
    assert found.modules == ("first_policy", "second_policy")
    assert [path.name for path in found.files] == ["first_policy.py", "second_policy.py"]


def test_of_an_installed_package_only_the_package_goes(tmp_path: Path) -> None:
    found = shipment(make_config("yaml.nodes:Node"), search_path=tmp_path)
    assert found is not None
    assert found.modules == ("yaml.nodes",)
    assert [path.name for path in found.files] == ["yaml"]
    assert (found.files[0] / "nodes.py").is_file()


@pytest.mark.parametrize("module", ["no_such_module_here", "builtins"])
def test_a_module_without_a_file_is_named(module: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"module '{module}' has no file"):
        source_of(module, tmp_path)


def test_the_folder_of_the_configuration_goes_before_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "textwrap.py").touch()
    assert source_of("textwrap", tmp_path) == (tmp_path / "textwrap.py").resolve()
