import pytest

from rlprompt.config import parse_config
from rlprompt.scoring import scorer_spec

ENV_ID = "rlprompt.envs:rlprompt/TokenPrompt-v0"


@pytest.fixture
def kwargs():
    """Builds env arguments on the planted task: 8 train examples, accuracy-free log-probability reward."""

    def build(*, landscape="separable", target=None, stabilisers=(), reward="log-probability", **env):
        config = parse_config(
            {
                "task": {"name": "planted", "shots": 4, "dev_shots": 4, "test_limit": 4},
                "target": {"name": f"planted:{landscape}", "kwargs": target or {}},
                "reward": [{"name": reward}],
                "stabilisers": [{"name": name} for name in stabilisers],
            }
        )
        return {"scorer": scorer_spec(config), "tokenizer": "planted-50", "prompt_length": 3, **env}

    return build


@pytest.fixture
def count_calls(monkeypatch):
    """Counts the calls of an env's scorer: returns the list of scored prompt batches."""

    def watch(env):
        scorer = env.unwrapped.writing.scorer
        calls, score = [], scorer.score

        def counting(prompts, examples, **options):
            calls.append(list(prompts))
            return score(prompts, examples, **options)

        monkeypatch.setattr(scorer, "score", counting)
        return calls

    return watch
