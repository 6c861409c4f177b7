import pytest

from rlprompt.config import parse_config
from rlprompt.scoring import scorer_spec

TWO = [{"name": "agent_0", "length": 2}, {"name": "agent_1", "length": 1}]


@pytest.fixture
def game():
    """Builds the arguments of a game on the planted task: 8 train examples, words w00 to w49, EOS is 50."""

    def build(
        *, agents=TWO, level="task", landscape="separable", target=None, stabilisers=(), examples_per_step=None, **rules
    ):
        config = parse_config(
            {
                "task": {"name": "planted", "shots": 4, "dev_shots": 4, "test_limit": 4},
                "target": {"name": f"planted:{landscape}", "kwargs": target or {}},
                "reward": [{"name": "log-probability"}],
                "stabilisers": [{"name": name} for name in stabilisers],
                "env": {"kind": "rewrite", "level": level},
            }
        )
        return {
            "scorer": scorer_spec(config),
            "agents": agents,
            "tokenizer": "planted-50",
            "level": level,
            "examples_per_step": examples_per_step,
            **rules,
        }

    return build


@pytest.fixture
def count_calls(monkeypatch):
    """Counts the calls of a game's scorer: returns the list of scored prompt batches."""

    def watch(played):
        calls, score = [], played.scorer.score

        def counting(prompts, examples, **options):
            calls.append(list(prompts))
            return score(prompts, examples, **options)

        monkeypatch.setattr(played.scorer, "score", counting)
        return calls

    return watch
