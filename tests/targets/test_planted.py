import itertools
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.masks import decode
from rlprompt.models import load_tokenizer
from rlprompt.targets.planted import LANDSCAPES, PlantedTarget
from rlprompt.tasks.planted import CHOICES, planted_label, planted_task
from rlprompt.types import Rendered, Target, TargetRequest


def ask(target, prompt, numbers, **kwargs):
    requests = [
        TargetRequest(Rendered(text=f"item {number} {prompt}"), **({"choices": CHOICES} | kwargs)) for number in numbers
    ]
    return target.run(requests)


def words(target):
    return target.optimum.split()


def other_word(target):
    taken = {int(word[1:]) for word in words(target)} | set(target._decoys.tolist())
    return f"w{min(set(range(target.vocabulary)) - taken):02d}"


def test_it_is_a_target():
    assert isinstance(PlantedTarget(), Target)


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_the_optimum_is_the_only_best_prompt(landscape):
    target = PlantedTarget(landscape, length=2, vocabulary=7)
    every = [f"w{a:02d} w{b:02d}" for a, b in itertools.product(range(7), repeat=2)]
    qualities = {prompt: target.quality(prompt) for prompt in every}
    assert qualities[target.optimum] == 1.0
    assert all(0.0 <= quality < 1.0 for prompt, quality in qualities.items() if prompt != target.optimum)
    assert target.quality("") == 0.0


@pytest.mark.parametrize("vocabulary", [10, 50, 101, 1000])
def test_the_optimum_is_written_in_the_words_of_the_planted_tokenizer(vocabulary):
    target = PlantedTarget(vocabulary=vocabulary)
    tokenizer = load_tokenizer(f"planted-{vocabulary}")
    ids = tokenizer.encode(target.optimum)
    assert len(ids) == 3
    assert decode(tokenizer, ids) == target.optimum
    assert target.quality(target.optimum) == 1.0


def test_separable_adds_the_weight_of_each_right_position():
    target = PlantedTarget("separable", length=3)
    first, second, third = words(target)
    no = other_word(target)
    parts = [target.quality(text) for text in (first, f"{no} {second}", f"{no} {no} {third}")]
    assert sum(parts) == pytest.approx(1.0)
    # weights lie in (0.5, 1.5): the least share is 0.5 / (0.5 + 1.5 + 1.5), the largest 1.5 / (1.5 + 0.5 + 0.5)
    assert all(0.5 / 3.5 <= part <= 1.5 / 2.5 for part in parts)
    assert target.quality(f"{first} {no} {third}") == pytest.approx(parts[0] + parts[2])
    assert target.quality(f"{second} {first}") == 0.0


def test_chained_counts_a_word_only_after_right_words():
    target = PlantedTarget("chained", length=3)
    first, second, third = words(target)
    no = other_word(target)
    assert target.quality(f"{no} {second} {third}") == 0.0
    assert target.quality(f"{first} {no} {third}") == pytest.approx(target.quality(first))
    assert 0.0 < target.quality(first) < target.quality(f"{first} {second}") < 1.0


def test_deceptive_has_a_local_optimum_at_seven_tenths_that_pulls_away():
    target = PlantedTarget("deceptive", length=3)
    decoy = [f"w{word:02d}" for word in target._decoys]
    assert target.quality(" ".join(decoy)) == pytest.approx(0.7)
    neighbours = [
        " ".join([*decoy[:position], f"w{word:02d}", *decoy[position + 1 :]])
        for position in range(3)
        for word in range(50)
        if f"w{word:02d}" != decoy[position]
    ]
    assert max(map(target.quality, neighbours)) < 0.7
    first, second, _ = words(target)
    # two of three right: 2 * 0.4 / 3; the decoy in the third position adds 0.7 / 3
    assert target.quality(f"{first} {second} {other_word(target)}") == pytest.approx(0.8 / 3)
    assert target.quality(f"{first} {second} {decoy[2]}") == pytest.approx(1.5 / 3)


def test_pairs_count_jointly():
    target = PlantedTarget("pairs", length=3)
    first, second, third = words(target)
    no = other_word(target)
    left = target.quality(f"{first} {second} {no}")  # b_1 + 0.2 b_2
    right = target.quality(f"{no} {second} {third}")  # 0.2 b_1 + b_2
    assert left + right == pytest.approx(1.2)
    assert target.quality(f"{no} {second} {no}") == pytest.approx(0.2)
    assert left > target.quality(f"{first} {no} {no}") + target.quality(f"{no} {second} {no}")


def test_words_after_the_planted_length_are_ignored_unless_they_are_made_harmful():
    target = PlantedTarget(length=2)
    assert target.quality(target.optimum + " w01 w02") == 1.0
    harmful = PlantedTarget(length=2, extra_penalty=0.25)
    assert harmful.quality(harmful.optimum + " w01 w02") == pytest.approx(0.5)
    assert harmful.quality(harmful.optimum + " w01" * 9) == 0.0


def test_the_right_label_has_the_log_sigmoid_of_scale_times_quality_less_difficulty():
    target = PlantedTarget("separable", length=3, seed=4)
    prompt = words(target)[0]
    for number, output in zip((0, 1, 17), ask(target, prompt, (0, 1, 17)), strict=True):
        difficulty, scale = target.difficulty_and_scale(number)
        probability = 1.0 / (1.0 + math.exp(-scale * (target.quality(prompt) - difficulty)))
        label = planted_label(number)
        assert output.choice_logprobs[label] == pytest.approx(math.log(probability))
        assert np.exp(output.choice_logprobs).sum() == pytest.approx(1.0)


def test_examples_differ_in_difficulty_and_scale():
    target = PlantedTarget()
    difficulties, scales = zip(*(target.difficulty_and_scale(number) for number in range(200)), strict=True)
    assert 0.1 <= min(difficulties) < 0.15
    assert 0.85 < max(difficulties) <= 0.9
    assert 2.0 <= min(scales) < 2.3
    assert 17.0 < max(scales) <= 20.0


def test_the_optimum_is_right_on_every_example_and_the_empty_prompt_on_none():
    target, task = PlantedTarget(), planted_task()
    for prompt, expected in ((target.optimum, True), ("", False)):
        outputs = target.run(
            [TargetRequest(task.template.render(prompt, example), choices=task.choices) for example in task.test]
        )
        right = [
            int(np.argmax(output.choice_logprobs)) == example.reference
            for output, example in zip(outputs, task.test, strict=True)
        ]
        assert set(right) == {expected}


def test_answers_do_not_depend_on_the_batch():
    target = PlantedTarget("pairs", noise=0.5, failure_rate=0.2)
    together = ask(target, target.optimum, range(20))
    assert together == [ask(target, target.optimum, [number])[0] for number in range(20)]
    assert together == list(reversed(ask(target, target.optimum, reversed(range(20)))))


def test_noise_is_keyed_by_seed_prompt_and_example_and_has_the_given_size():
    quiet, loud = PlantedTarget(), PlantedTarget(noise=0.5)

    def logits(target, prompt):
        outputs = ask(target, prompt, range(400))
        return np.array([a - b for a, b in (output.choice_logprobs for output in outputs)])

    shift = logits(loud, "w01") - logits(quiet, "w01")
    assert np.std(shift) == pytest.approx(0.5, rel=0.15)  # standard error 0.5 / sqrt(800) = 0.018
    assert np.array_equal(logits(loud, "w01"), logits(PlantedTarget(noise=0.5), "w01"))
    assert not np.allclose(shift, logits(loud, "w02") - logits(quiet, "w02"))


def test_failures_are_data_at_the_given_rate():
    target = PlantedTarget(failure_rate=0.25)
    outputs = ask(target, "w01", range(400))
    failed = [output for output in outputs if output.failure is not None]
    assert len(failed) == pytest.approx(100, abs=35)  # 4 standard deviations: 4 * sqrt(400 * 0.25 * 0.75) = 34.6
    assert {(output.failure.where, output.choice_logprobs) for output in failed} == {("target", None)}


def test_a_batch_takes_the_latency_once():
    target = PlantedTarget(latency_s=0.05)
    started = time.perf_counter()
    ask(target, "w01", range(10))
    assert 0.05 <= time.perf_counter() - started < 0.4


def test_continuations_and_generation_are_answered_too():
    target = PlantedTarget()
    (choice,) = ask(target, "w01", [3])
    (continuation,) = ask(target, "w01", [3], choices=None, continuation=" yes")
    assert continuation.logprob == choice.choice_logprobs[planted_label(3)]
    (best,) = ask(target, target.optimum, [3], choices=None, max_tokens=1)
    (worst,) = ask(target, "", [3], choices=None, max_tokens=1)
    assert best.text == CHOICES[planted_label(3)]
    assert worst.text == CHOICES[1 - planted_label(3)]


def test_sampled_generation_follows_the_probability():
    target = PlantedTarget()
    number = min(range(50), key=lambda n: abs(target.difficulty_and_scale(n)[0] - 0.3))
    (known,) = ask(target, words(target)[0], [number])
    probability = math.exp(known.choice_logprobs[planted_label(number)])
    texts = [
        ask(target, words(target)[0], [number], choices=None, max_tokens=1, temperature=1.0, sample=sample)[0].text
        for sample in range(400)
    ]
    share = texts.count(CHOICES[planted_label(number)]) / 400
    assert share == pytest.approx(probability, abs=0.1)  # 4 standard deviations of at most 0.025


def test_inputs_without_an_item_and_chat_messages_are_answered():
    target = PlantedTarget()
    (free,) = target.run([TargetRequest(Rendered(text="N/A w01"), choices=CHOICES)])
    assert free.choice_logprobs == pytest.approx((math.log(0.5), math.log(0.5)))
    chat = Rendered(messages=(("system", target.optimum), ("user", "item 3")))
    assert target.run([TargetRequest(chat, choices=CHOICES)])[0].choice_logprobs == (
        ask(target, target.optimum, [3])[0].choice_logprobs
    )


def test_tokens_are_words_and_the_estimate_is_an_upper_one():
    target = PlantedTarget()
    requests = [
        TargetRequest(Rendered(text="item 3 w01 w02"), choices=CHOICES),
        TargetRequest(Rendered(text="item 3 w01 w02"), max_tokens=4),
    ]
    outputs = target.run(requests)
    assert [output.prompt_tokens for output in outputs] == [4, 4]
    for estimate, output in zip(target.count_tokens(requests), outputs, strict=True):
        assert estimate >= output.prompt_tokens + output.completion_tokens


def test_seeds_plant_different_prompts_and_the_identity_tells_targets_apart():
    optima = {PlantedTarget(seed=seed).optimum for seed in range(10)}
    assert len(optima) == 10
    identities = {
        json.dumps(target.identity, sort_keys=True)
        for target in (
            PlantedTarget(),
            PlantedTarget(seed=1),
            PlantedTarget("chained"),
            PlantedTarget(length=4),
            PlantedTarget(vocabulary=60),
            PlantedTarget(noise=0.1),
            PlantedTarget(failure_rate=0.1),
            PlantedTarget(extra_penalty=0.1),
        )
    }
    assert len(identities) == 8
    assert PlantedTarget(latency_s=0.1).identity == PlantedTarget().identity


def test_t5_answers_do_not_depend_on_the_hash_seed_or_the_process():
    code = (
        "from rlprompt.targets.planted import PlantedTarget as T; from rlprompt.types import *;"
        "t = T('pairs', noise=0.3); r = TargetRequest(Rendered(text='item 5 w01'), choices=('a', 'b'));"
        "print(t.optimum, t.run([r])[0].choice_logprobs)"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"landscape": "seperable"}, "did you mean 'separable'"),
        ({"length": 0}, "needs length >= 1, got 0"),
        ({"landscape": "pairs", "length": 1}, "needs length >= 2, got 1"),
        ({"length": 3, "vocabulary": 5}, "at least 2 \\* length = 6, got 5"),
        ({"failure_rate": 1.5}, "in \\[0, 1\\], got 1.5"),
        ({"noise": -1.0}, "noise must be >= 0, got -1.0"),
    ],
)
def test_arguments_out_of_range_are_one_line_errors(kwargs, match):
    with pytest.raises(ConfigError, match=match):
        PlantedTarget(**kwargs)
    assert issubclass(UnknownNameError, ConfigError)


def test_the_planted_task_is_balanced_disjoint_and_the_same_every_time():
    task = planted_task()
    assert task == planted_task() or [e.id for e in task.train] == [e.id for e in planted_task().train]
    assert [len(split) for split in (task.train, task.dev, task.test)] == [64, 64, 128]
    for split in (task.train, task.dev, task.test):
        assert sum(example.reference for example in split) == len(split) // 2
    inputs = [example.input for split in (task.train, task.dev, task.test) for example in split]
    assert len(set(inputs)) == 256
    assert inputs[17] == "item 17"
    assert [example.reference for example in task.train] == [planted_label(number) for number in range(64)]
    labels = "".join(str(planted_label(2 * pair)) for pair in range(32))
    assert 4 < labels.count("1") < 28  # the coin of each pair is seeded, not constant


def test_a_planted_task_of_no_examples_is_refused():
    with pytest.raises(ConfigError, match=r"planted_task\(num_dev=...\) must be 1 to 1000, got 0"):
        planted_task(num_dev=0)
