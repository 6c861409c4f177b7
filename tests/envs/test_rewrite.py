"""Rewrites at task and instance level: contexts, keyed inputs, pair scores, turns, and what bad texts mean."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from rlprompt.config import parse_config
from rlprompt.envs import RewriteEnv, RewriteVectorEnv, SequenceActionVector
from rlprompt.errors import ConfigError
from rlprompt.models import load_tokenizer
from rlprompt.scoring import scorer_spec

ENV_ID = "rlprompt.envs:rlprompt/Rewrite-v0"
MODEL = "smollm2-135m-instruct"
EOS = 50
SEQUENCE_OF_TURNS = {"action": "sequence", "turns": 2, "meta_prompt": "{input}\n{feedback}"}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


@pytest.fixture
def rewrite():
    """Builds arguments of the env on the planted task with 8 train examples; instance level unless told."""

    def build(*, level="instance", stabilisers=(), target=None, landscape="planted:separable", sections=None, **env):
        env_section = {"kind": "rewrite", "level": "task" if level == "task" else "instance"}
        config = parse_config(
            {
                "task": {"name": "planted", "shots": 4, "dev_shots": 4, "test_limit": 4},
                "target": {"name": landscape, "kwargs": target or {}},
                "reward": [{"name": "log-probability"}],
                "stabilisers": [{"name": name} for name in stabilisers],
                "env": env_section,
                **(sections or {}),
            }
        )
        meta = {"meta_prompt": "Fit it to: {input}"} if level == "instance" else {"draft": "w01 w02"}
        return {
            "scorer": scorer_spec(config),
            "tokenizer": "planted-50",
            "prompt_length": 3,
            "level": level,
            **meta,
            **env,
        }

    return build


def play(env, rows):
    env.reset()
    return [env.step(column) for column in np.array(rows).T]


@pytest.mark.parametrize(
    "options", [{}, {"level": "task"}, {"step_reward": "difference"}, {"action": "sequence"}, SEQUENCE_OF_TURNS]
)
def test_the_environment_checker_has_nothing_to_say(rewrite, options):
    env = gymnasium.make(ENV_ID, **rewrite(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The form with whole prompts is a wrapper, and the checker says so.
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check_env(env.env.env if "action" in options else env.unwrapped, skip_render_check=True)


def test_a_spec_survives_json(rewrite):
    arguments = rewrite(turns=2, meta_prompt="Fit it to: {input}\n{feedback}")
    env = gymnasium.make(ENV_ID, **arguments)
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.observation_space == env.observation_space
    assert again.spec.kwargs == env.spec.kwargs == json.loads(json.dumps(arguments))
    assert gymnasium.make_vec(ENV_ID, num_envs=2, **arguments).num_envs == 2


def test_the_task_context_is_the_meta_prompt_with_the_draft_in_the_chat_template(rewrite, tokenizer):
    env = RewriteEnv(**rewrite(level="task", tokenizer=MODEL, draft="Say {it}: <|im_end|>"))
    ids = env.reset()[0]["context"].tolist()
    text = tokenizer.decode(ids)
    assert text.endswith("\nInstruction: Say {it}: <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert "Rewrite the following instruction via rephrasing" in text
    assert ids.count(tokenizer.eos_token_id) == 2  # system and user; the draft's marker is characters, not a token
    plain = RewriteEnv(**rewrite(level="task", tokenizer=MODEL, draft="Say it.", chat=False))
    assert tokenizer.decode(plain.reset()[0]["context"]).endswith("\nInstruction: Say it.")


def test_each_input_has_its_own_context_padded_to_the_longest(rewrite, tokenizer):
    env = RewriteVectorEnv(4, **rewrite(tokenizer=MODEL, rewrites_per_input=2, chat=False))
    observations, _ = env.reset()
    assert observations in env.observation_space
    texts = [tokenizer.decode(row[row >= 0]) for row in observations["context"]]
    drawn = env.writing.scorer.draw_inputs(0, 2)
    assert texts == [f"Fit it to: {example.input}" for example in drawn for _ in range(2)]
    longest = max(len(tokenizer.encode(f"Fit it to: {one.input}")) for one in env.writing.scorer.task.train)
    assert observations["context"].shape == (4, longest)


def test_an_epoch_takes_every_input_once_and_only_seed_and_iteration_decide(rewrite):
    env = RewriteVectorEnv(4, **rewrite(rewrites_per_input=2))
    scorer = env.writing.scorer
    seen = [example.id for iteration in range(4) for example in scorer.draw_inputs(iteration, 2)]
    assert sorted(seen) == sorted(example.id for example in scorer.task.train)
    second = [example.id for iteration in range(4, 8) for example in scorer.draw_inputs(iteration, 2)]
    assert sorted(second) == sorted(seen)
    assert second != seen
    env.set_iteration(3)
    env.reset()
    assert [example.id for example in env.writing.inputs] == [seen[6], seen[6], seen[7], seen[7]]
    worker = RewriteVectorEnv(2, **rewrite(rewrites_per_input=2), first_episode=2)
    worker.reset(options={"iteration": 3})
    assert [example.id for example in worker.writing.inputs] == [seen[7], seen[7]]


def test_a_step_makes_one_scoring_call_and_compares_rewrites_of_one_input_only(rewrite, monkeypatch):
    env = RewriteVectorEnv(4, **rewrite(rewrites_per_input=2, stabilisers=["leave-one-out"]))
    scorer = env.writing.scorer
    calls, run = [], scorer.target.run
    monkeypatch.setattr(scorer.target, "run", lambda requests: calls.append(len(requests)) or run(requests))
    *_, (_, rewards, _, _, infos) = play(env, [[1, 2, 3], [4, 5, EOS], [1, 2, 3], [7, EOS, EOS]])
    assert calls == [4]
    raw = infos["raw_reward"]
    assert rewards == pytest.approx([raw[0] - raw[1], raw[1] - raw[0], raw[2] - raw[3], raw[3] - raw[2]])
    assert infos["prompt"].tolist() == ["w01 w02 w03", "w04 w05", "w01 w02 w03", "w07"]
    drawn = scorer.draw_inputs(0, 2)
    assert env.last_scores.row_example_ids == tuple(one.id for one in drawn for _ in range(2))


def test_whole_rewrites_have_the_rewards_of_their_tokens(rewrite):
    arguments = rewrite(rewrites_per_input=2, step_reward="difference")
    rows = [[1, 2, 3], [4, EOS, EOS]]
    steps = play(RewriteVectorEnv(2, **arguments), rows)
    whole = SequenceActionVector(RewriteVectorEnv(2, **arguments))
    whole.reset()
    _, rewards, terminated, truncated, infos = whole.step(np.array(rows))
    assert rewards == pytest.approx(sum(step[1] for step in steps))
    assert infos["token_rewards"] == pytest.approx(np.stack([step[1] for step in steps], axis=1))
    assert (terminated.tolist(), truncated.tolist()) == ([True, True], [False, False])
    scorer = whole.unwrapped.writing.scorer
    empty = scorer.score_pairs(["", ""], whole.unwrapped.writing.inputs).mean_rewards
    assert rewards == pytest.approx(infos["raw_reward"] - empty)


def test_a_wrong_rewrite_is_written_again_with_the_answer_in_the_context(rewrite, tokenizer):
    meta = "Fit it to: {input}\n{feedback}"
    env = RewriteVectorEnv(2, **rewrite(tokenizer=MODEL, chat=False, turns=2, meta_prompt=meta, prompt_length=16))
    scorer = env.writing.scorer
    best, bad = (tokenizer.encode(f" {text}") for text in (scorer.target.optimum, "nothing"))
    rows = np.full((2, 16), tokenizer.eos_token_id)
    rows[0, : len(best)], rows[1, : len(bad)] = best, bad
    whole = SequenceActionVector(env)
    first, _ = whole.reset()
    observations, rewards, terminated, truncated, infos = whole.step(rows)
    assert not (terminated | truncated).any()
    assert rewards.tolist() == [0.0, 0.0]
    assert infos["waiting"].tolist() == [True, False]  # the first was right
    assert infos["turn"].tolist() == [1, 1]
    assert (observations["tokens"] == -1).all()
    assert (observations["key"][:, 1] - first["key"][:, 1]).tolist() == [2**20, 2**20]
    context = observations["context"]
    answer = scorer.task.choices[int(np.argmax(env.last_scores.outputs[1][0].choice_logprobs))].strip()
    assert tokenizer.decode(context[1][context[1] >= 0]).endswith(
        f"\nAn earlier version was: nothing\nThe answer to it was wrong: {answer}"
    )
    assert "earlier" not in tokenizer.decode(context[0][context[0] >= 0])
    observations, rewards, terminated, truncated, infos = whole.step(rows[::-1])
    assert (terminated | truncated).all()
    assert infos["prompt"].tolist() == [scorer.target.optimum] * 2  # the first waited, whatever its action
    finals = scorer.score_pairs([scorer.target.optimum] * 2, env.writing.inputs)
    assert rewards == pytest.approx(finals.mean_rewards)


def test_turns_of_tokens_have_the_reward_of_the_last_one(rewrite):
    env = RewriteEnv(**rewrite(turns=2, meta_prompt="{input}\n{feedback}"))
    steps, over = [], False
    env.reset()
    while not over:
        steps.append(env.step(EOS if len(steps) % 2 else 49))
        over = steps[-1][2] or steps[-1][3]
    assert len(steps) == 4  # two turns of a word and EOS
    assert [step[1] for step in steps[:3]] == [0.0, 0.0, 0.0]
    assert steps[3][1] == pytest.approx(steps[3][4]["raw_reward"])
    assert steps[1][0]["tokens"].tolist() == [-1, -1, -1]


def test_special_tokens_and_role_markers_are_masked(rewrite, tokenizer):
    env = RewriteEnv(**rewrite(level="task", tokenizer=MODEL))
    allowed = env.reset()[1]["action_mask"]
    specials = [tokenizer.convert_tokens_to_ids(text) for text in ("<|im_start|>", "<|endoftext|>", "<|im_end|>")]
    assert allowed[specials].tolist() == [0, 0, 0]
    *_, info = env.step(tokenizer.encode(" word")[0])
    assert info["action_mask"][specials].tolist() == [0, 0, 1]  # EOS, once something is written


def test_an_empty_rewrite_is_scored_as_the_empty_prompt(rewrite):
    env = RewriteEnv(**rewrite())
    env.reset()
    _, reward, terminated, _, info = env.step(EOS)
    assert terminated
    assert info["masked_action"]
    empty = env.writing.scorer.score_pairs([""], env.writing.inputs)
    assert (info["prompt"], info["valid"]) == ("", True)
    assert reward == pytest.approx(empty.mean_rewards[0])


def test_a_rewrite_too_long_for_the_target_is_a_failure_of_its_kind(rewrite):
    task = {"name": "planted", "shots": 4, "dev_shots": 4, "choices": ["w10", "w11"]}
    target = {"landscape": "planted-50", "target": {"max_length": 2}, "sections": {"task": task}}
    env = RewriteEnv(**rewrite(**target, prompt_length=5))
    env.reset()
    for token in (1, 2, 3, 4, EOS):
        *step, info = env.step(token)
    assert info["valid"] is False
    assert info["failure"].kind == "too-long"
    assert step[1] == 0.0


def test_a_long_input_is_cut_for_the_policy_and_not_for_the_target(rewrite, tokenizer, tmp_path):
    long = "é{x} <|im_start|>" * 600 + "item 3"
    for split in ("train", "dev", "test"):
        lines = [{"text": f"{split} {number} {long}", "label": number} for number in (0, 1)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    sections = {"task": {"name": "planted", "shots": None, "dev_shots": None}}
    arguments = rewrite(tokenizer=MODEL, max_context=40, chat=False, sections=sections)
    env = RewriteEnv(**arguments)
    scorer = env.writing.scorer
    example = scorer.task.train[0]
    big = type(example)("train/big", "item 3 " + long, example.reference)
    assert len(big.input) > 10_000
    text, ids = env.writing.contexts.one(big)
    assert len(ids) == 40
    assert text.startswith("Fit it to: item 3 é{x}")
    assert ("Fit it to: " + big.input).startswith(text)
    assert scorer.task.template.render("w01", big).text == f"{big.input} w01"


def test_a_draft_in_another_script_is_read_and_written_byte_for_byte(rewrite, tokenizer):
    draft = "Определи тон отзыва: 好 или 差؟ \U0001f469\u200d\U0001f373"
    env = RewriteEnv(**rewrite(level="task", tokenizer=MODEL, draft=draft, prompt_length=64))
    context = env.reset()[0]["context"].tolist()
    assert f"\nInstruction: {draft}<|im_end|>" in tokenizer.decode(context, clean_up_tokenization_spaces=False)
    tokens = tokenizer.encode(draft, add_special_tokens=False)
    steps = [env.step(token) for token in (*tokens, tokenizer.eos_token_id)]
    info = steps[-1][4]
    assert (info["prompt"], info["valid"]) == (draft, True)
    # Tokens of half a character are masked, so a policy writes such a text only where whole characters are tokens.
    masked = [step[4]["masked_action"] for step in steps[:-1]]
    halves = ["\ufffd" in tokenizer.decode([token]) for token in tokens]
    assert masked == halves
    assert 0 < sum(halves) < len(halves)


def test_half_a_character_that_is_written_all_the_same_is_no_crash(rewrite, tokenizer):
    half = next(token for token in tokenizer.encode("差") if "\ufffd" in tokenizer.decode([token]))
    env = RewriteEnv(**rewrite(level="task", tokenizer=MODEL))
    env.reset()
    env.step(half)
    *_, info = env.step(tokenizer.eos_token_id)
    assert (info["prompt"], info["valid"]) == ("\ufffd", True)


def test_a_draft_of_ten_thousand_characters_is_read_whole_or_refused(rewrite, tokenizer):
    draft = "Compare trains with ships. " * 400
    assert len(draft) > 10_000
    env = RewriteEnv(**rewrite(level="task", tokenizer=MODEL, draft=draft))
    context = env.reset()[0]["context"]
    assert draft in tokenizer.decode(context[context >= 0])
    with pytest.raises(ConfigError, match=r"tokens without the input, but the policy can read 1000") as caught:
        RewriteEnv(**rewrite(level="task", tokenizer=MODEL, draft=draft, max_context=1000))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"meta_prompt": "Improve this."}, r"meta-prompt has no slot \{input\}, but it is read once for each input"),
        ({"meta_prompt": "prewrite", "draft": "x"}, r"meta-prompt 'prewrite' has no slot \{input\}"),
        ({"meta_prompt": "Fit {imput}"}, r"unknown slot \{imput\}; did you mean 'input'"),
        ({"meta_prompt": "prewrit"}, "unknown meta-prompt 'prewrit'; did you mean 'prewrite'"),
        ({"meta_prompt": "Fit {input} }"}, "lone '}' at character 12"),
        ({"turns": 2}, r"no slot \{feedback\}, but env.turns is 2"),
        ({"level": "task", "draft": ""}, r"has the slot \{draft\}, but env.draft is empty"),
        ({"level": "task", "meta_prompt": "{draft} {input}"}, "one prompt is written for all inputs"),
        ({"level": "task", "draft": "w01 " * 600}, "takes 600 tokens without the input, but the policy can read 509"),
        ({"max_context": 0}, "max_context must be at least 1, got 0"),
        ({"samples": 2}, "asks for choices, which are the same each time"),
        ({"level": "both"}, "level must be task or instance, got 'both'"),
    ],
)
def test_wrong_arguments_are_one_line_errors(rewrite, change, match):
    with pytest.raises(ConfigError, match=match) as caught:
        RewriteEnv(**rewrite(**change))
    assert "\n" not in str(caught.value)


def test_numbers_of_prompts_and_inputs_must_fit(rewrite):
    with pytest.raises(ConfigError, match=r"must be a multiple of env\.rewrites_per_input = 2, got 3"):
        RewriteVectorEnv(3, **rewrite(rewrites_per_input=2))
    with pytest.raises(ConfigError, match=r"takes 9 inputs .* but train has 8 examples"):
        RewriteVectorEnv(9, **rewrite())
    with pytest.raises(ConfigError, match=r"env\.rewrites_per_input is 1; use at least 2"):
        RewriteVectorEnv(2, **rewrite(stabilisers=["z-score"]))
