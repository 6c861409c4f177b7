"""Composition: segments of one tokenizer are decoded together, elsewhere text stands between; defaults of agents."""

import pytest
import yaml

from rlprompt.agents import AgentConfig, settled
from rlprompt.config import dump_config, parse_config
from rlprompt.errors import ConfigError
from rlprompt.models import load_tokenizer
from rlprompt.registry import names, resolve
from rlprompt.segments import Composition

MODEL = "smollm2-135m-instruct"
EOS = 50


def composition(*agents, model="planted-50"):
    found = settled(
        [AgentConfig(name=f"agent_{place}", **agent) for place, agent in enumerate(agents)],
        per_input=False,
        model=model,
    )
    return Composition(found, [load_tokenizer(agent.model) for agent in found])


def test_tokens_that_go_on_are_decoded_together():
    tokenizer = load_tokenizer(MODEL)
    ids = tokenizer.encode(" unbelievable films")
    together = composition({"length": 2}, {"length": 3}, model=MODEL)
    for cut in range(1, len(ids)):
        assert together.text([ids[:cut], ids[cut:]]) == "unbelievable films"
        assert together.ids([ids[:cut]]) == ids[:cut]
    assert together.room(1) == 2


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([[1], [2], [3]], "w01\nw02; w03"),
        ([[1], [EOS], [3]], "w01\nw03"),  # an empty segment adds nothing, no separator either
        ([[EOS], [2], [3]], "w02; w03"),
        ([[1], [2], [EOS]], "w01\nw02"),
        ([[1], [2]], "w01\nw02"),
        ([[EOS, 4], [EOS], [EOS]], ""),
        ([], ""),
        ([[1, 2, EOS, 9], [-1, -1], [3]], "w01 w02\nw03"),
    ],
)
def test_separators_stand_between_what_was_written(segments, expected):
    parts = composition({"separator": "\n", "ends": "eos"}, {"separator": "; ", "ends": "eos"}, {"ends": "eos"})
    assert parts.text(segments) == expected


def test_an_empty_segment_between_two_tokenizers_leaves_text_between_them():
    parts = composition({"separator": " "}, {"model": "planted-20", "separator": ""}, {"model": "planted-20"})
    assert parts.text([[1], [20], [3]]) == "w01 w03"
    assert parts.ids([[1], [20]]) == [1]  # read as text of the reader's own tokenizer


def test_text_is_read_with_its_separator_but_a_space_is_the_next_tokens():
    tokenizer = load_tokenizer(MODEL)
    ids = tokenizer.encode(" A film.")
    lines = composition({"separator": "\n", "length": 8}, {"length": 2}, model=MODEL)
    assert tokenizer.decode(lines.ids([ids])) == "A film.\n"
    spaced = composition({"separator": " ", "length": 8}, {"length": 2}, model=MODEL)
    assert tokenizer.decode(spaced.ids([ids])) == "A film."
    assert lines.ids([[tokenizer.eos_token_id]]) == []
    assert len(lines.ids([ids])) <= lines.room(1)


@pytest.mark.parametrize("name", sorted(names("roles")))
def test_a_role_brings_meta_prompt_separator_and_end(name):
    for per_input in (False, True):
        (agent,) = settled([AgentConfig(name="a", role=name)], per_input=per_input, model="planted-50")
        assert agent.meta_prompt == resolve("roles", name).meta_prompt(per_input=per_input)
        assert (agent.separator, agent.ends, agent.model) == ("\n", "eos", "planted-50")
        assert settled([agent], per_input=per_input, model="other") == (agent,)
    own = AgentConfig(name="a", role=name, separator=" ", ends="length", meta_prompt="Go: {draft}", model="planted-20")
    assert settled([own], per_input=False, model="planted-50") == (own,)


def test_the_configuration_comes_back_as_it_was():
    agents = [{"name": "who", "role": "role-line", "length": 12}, {"name": "rest", "separator": "", "ends": "eos"}]
    config = parse_config({"env": {"kind": "multi", "agents": agents, "draft": "Say it."}})
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("env", "match"),
    [
        ({"agents": [{"name": "a", "length": 0}]}, r"env.agents.0.length: .*greater than or equal to 1, got 0$"),
        ({"agents": [{"name": "a", "role": "poet"}]}, r"env.agents.0.role: unknown role 'poet'; known: constraints, "),
        ({"agents": [{"name": "a"}, {"name": "a"}]}, "two of env.agents are called 'a'; give each its own name"),
        ({}, "env.kind is 'multi', but env.agents is empty"),
        ({"agents": [{"name": "a", "seperator": ""}]}, "unknown key 'env.agents.0.seperator'; did you mean"),
        ({"agents": [{"name": "a"}], "prompt_length": 8}, "prompt_length is not for env.kind=multi"),
        ({"agents": [{"name": "a"}], "kind": "rewrite"}, "agents is for env.kind=multi, but env.kind is 'rewrite'"),
    ],
)
def test_wrong_configurations_are_one_line_errors(env, match):
    with pytest.raises(ConfigError, match=match) as caught:
        parse_config({"env": {"kind": "multi", **env}})
    assert "\n" not in str(caught.value)
