"""Teams: who has which weights, saving, role embeddings, and the central critic by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlprompt.agents import TeamConfig, settled
from rlprompt.config import PolicyConfig, parse_config
from rlprompt.errors import CheckpointError
from rlprompt.policies import PromptTeam, build_policy, build_team, load_team
from rlprompt.policies.critic import PrefixCritic
from rlprompt.policies.roles import RolePolicy

POLICY = PolicyConfig(kind="lm-adaptor", model="planted-50", kwargs={"hidden": 8})


def team_of(weights: str = "own", *, with_critic: bool = False, **first: Any) -> PromptTeam:
    agents = [{"name": "a", "length": 2, **first}, {"name": "b", "length": 3}]
    config = parse_config({"env": {"kind": "multi", "agents": agents}})
    return build_team(
        POLICY,
        settled(config.env.agents, per_input=False, model="planted-50"),
        TeamConfig(weights=weights),  # type: ignore[arg-type]
        seed=3,
        with_critic=with_critic,
    )


def test_the_first_agent_is_the_policy_that_writes_alone_and_the_others_start_elsewhere() -> None:
    team, alone = team_of(), build_policy(POLICY, prompt_length=2, seed=3)
    own = [team.member(name).trainable_state() for name in team.names()]
    assert list(team.names()) == ["a", "b"]
    assert all(torch.equal(value, own[0][name]) for name, value in alone.trainable_state().items())
    assert any(not torch.equal(value, own[1][name]) for name, value in own[0].items())


@pytest.mark.parametrize("weights", ["own", "shared", "embedding"])
def test_what_is_saved_is_what_is_loaded(weights: str, tmp_path: Path) -> None:
    team = team_of(weights, with_critic=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in team.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    team.save(tmp_path, {"mode": "task", "template": "{prompt}"})
    loaded = load_team(tmp_path)
    assert loaded.weights == weights
    assert [agent.name for agent in loaded.agents] == ["a", "b"]
    state = team.trainable_state()
    assert {name for name in state if not name.startswith("critic/")} == set(loaded.trainable_state())
    assert all(torch.equal(value, state[name]) for name, value in loaded.trainable_state().items())
    context, tokens = torch.tensor([[4]]), torch.tensor([[1, 2]])
    for place in (0, 1):
        ours, theirs = (each.policy(place).evaluate(context, tokens)[0] for each in (team, loaded))
        assert torch.equal(ours, theirs)
    assert str(tmp_path) not in (tmp_path / "policy.json").read_text()


def test_a_damaged_team_is_a_one_line_error(tmp_path: Path) -> None:
    team_of().save(tmp_path)
    file = tmp_path / "policy.json"
    for change, match in (
        ({"agents": [{"name": "A"}]}, "an agent is damaged"),
        ({"agents": []}, "an agent is damaged"),
        ({"weights": "none"}, "'agents' or 'weights' is missing"),
    ):
        data = json.loads(file.read_text())
        (tmp_path / "policy.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(CheckpointError, match=match) as caught:
            load_team(tmp_path)
        assert "\n" not in str(caught.value)
        file.write_text(json.dumps(data))
    weights = tmp_path / "members" / "a" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_team(tmp_path)


def test_roles_are_alike_at_first_and_each_has_its_own_vector() -> None:
    team = team_of("embedding")
    first, second = team.policies
    assert isinstance(first, RolePolicy)
    context, tokens = torch.tensor([[4]]), torch.tensor([[1, 2]])
    assert torch.equal(first.evaluate(context, tokens)[0], second.evaluate(context, tokens)[0])
    assert first.head is second.head
    with torch.no_grad():
        first.head.base.value.weight.fill_(1.0)
        first.head.roles[1, 0] = 3.0
    values = [policy.evaluate(context, tokens)[1] for policy in (first, second)]
    hidden = first._policy.features(context, tokens)
    moved = hidden.clone()
    moved[..., 0] += 3.0
    assert torch.equal(values[0], first._policy.values(hidden, head=first.head.base))
    assert torch.equal(values[1], first._policy.values(moved, head=first.head.base))
    assert torch.equal(second.reference_logits(context, tokens), first.reference_logits(context, tokens))


def test_the_critic_sees_what_is_written_and_nothing_that_comes_later() -> None:
    critic = PrefixCritic(vocabulary_size=5, length=3, agents=2, hidden=16, seed=0)
    assert critic.values(torch.tensor([[1]]), torch.tensor([[0, 1, 2]]), torch.tensor([0, 0, 1])).tolist() == [
        [0.0] * 3
    ]
    with torch.no_grad():
        critic.out.weight.fill_(1.0)
    context, owners = torch.tensor([[1, -1]]), torch.tensor([0, 0, 1])
    whole = critic.values(context, torch.tensor([[0, 1, 2]]), owners)
    other = critic.values(context, torch.tensor([[0, 3, 4]]), owners)
    assert whole[0, :2].tolist() == other[0, :2].tolist()
    assert whole[0, 2] != other[0, 2]
    by_hand = critic(context, torch.tensor([[0, 1, -1]]), torch.tensor([1]), torch.tensor([2]))
    assert whole[0, 2].item() == pytest.approx(by_hand.item())
    assert critic.values(torch.tensor([[2, 2]]), torch.tensor([[0, 1, 2]]), owners)[0, 0] != whole[0, 0]
    someone = critic(context, torch.tensor([[0, 1, -1]]), torch.tensor([0]), torch.tensor([2]))
    assert someone.item() != by_hand.item()
