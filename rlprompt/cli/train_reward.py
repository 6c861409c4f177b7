"""`rlprompt train-reward KIND`: a reward that is learnt from preference pairs, or from the logs of earlier runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from rlprompt.cli.console import note, number, quiet_stdout, say_json, say_table
from rlprompt.cli.options import AllowModules
from rlprompt.errors import ConfigError

if TYPE_CHECKING:
    from rlprompt.rewards.learned.bradley_terry import PairAccuracy
    from rlprompt.rewards.learned.ranking import HeldOutRanking, Selection
    from rlprompt.rewards.learned.success_training import SuccessTraining
    from rlprompt.types import Json

app = typer.Typer(
    help="Train a reward from preference pairs (JSONL) or from the logs of runs, and report it on what was held out.",
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
)

Pairs: TypeAlias = Annotated[
    Path, typer.Argument(metavar="PAIRS", help="JSONL lines with id, input or context, chosen and rejected.")
]
Output: TypeAlias = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the reward is saved.")]
HeldOut: TypeAlias = Annotated[float, typer.Option(help="Share of the contexts or inputs that is held out.")]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Of all draws.")]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
MaxTokens: TypeAlias = Annotated[
    int, typer.Option(min=8, help="Of context and text; longer rows lose their beginning.")
]
Regularisation: TypeAlias = Annotated[float, typer.Option(help="C: larger fits closer.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object on standard output and nothing else.")]


@app.command("bradley-terry")
def bradley_terry(
    pairs: Pairs,
    output: Output,
    model: Annotated[str, typer.Option(help="The causal LM under the head.")] = "smollm2-135m-instruct",
    revision: Annotated[str | None, typer.Option(help="Of an LM on a hub.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the frozen LM: auto, float32, bfloat16 or float16.")] = "auto",
    full: Annotated[bool, typer.Option("--full", help="Train the whole LM, without an adapter.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of one step.")] = 8,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-4,
    margin_scale: Annotated[float, typer.Option(min=0.0, help="Factor of the pairs' margins in the loss.")] = 0.0,
    max_tokens: MaxTokens = 512,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    device: Device = "auto",
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps between two checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in DIR.")] = False,
    as_json: AsJson = False,
) -> int:
    """Train an LM with a scalar head on preference pairs; the reward is called reward-model."""
    settings: dict[str, Any] = {
        **{"model": model, "revision": revision, "dtype": dtype, "device": device, "epochs": epochs, "seed": seed},
        **{"batch_size": batch_size, "lr": lr, "margin_scale": margin_scale, "max_tokens": max_tokens},
        **{"held_out": held_out, "checkpoint_every": checkpoint_every, **({"lora": None} if full else {})},
    }
    with quiet_stdout():
        from pydantic import ValidationError

        from rlprompt.algorithms.trl.reward_model import RewardModelConfig, train_reward_model
        from rlprompt.config import describe
        from rlprompt.preferences import read_pairs

        try:
            config = RewardModelConfig.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(f"--{describe(error, RewardModelConfig)}") from error
        done = train_reward_model(read_pairs(pairs), output, config, resume=resume)
    lines = []
    if done.losses:
        lines.append(["loss", f"{number(done.losses[0])} at the first step, {number(done.losses[-1])} at the last"])
    _say_pairs("reward-model", output, done.num_pairs, done.held_out, lines, {"steps": len(done.losses)}, as_json)
    return 0


@app.command("features")
def features(
    pairs: Pairs,
    output: Output,
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One of 'rlprompt list features', or module:function; repeatable."),
    ] = None,
    regularisation: Regularisation = 1.0,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    allow_module: AllowModules = None,
    as_json: AsJson = False,
) -> int:
    """Fit a weight to each of several named features of a text; the reward is called feature-model."""
    with quiet_stdout():
        from rlprompt.preferences import read_pairs
        from rlprompt.rewards.learned.feature_model import train_feature_model
        from rlprompt.rewards.learned.features import DEFAULT_FEATURES

        done = train_feature_model(
            read_pairs(pairs),
            output,
            features=tuple(feature or DEFAULT_FEATURES),
            held_out=held_out,
            seed=seed,
            regularisation=regularisation,
            allow_modules=tuple(allow_module or ()),
            search_path=pairs.resolve().parent,
        )
    ordered = sorted(done.model.weights, key=lambda entry: -abs(entry.weight))
    lines = [[f"weight of {entry.name}", f"{entry.weight:+.4f}"] for entry in ordered]
    more = {"weights": {entry.name: entry.weight for entry in ordered}}
    _say_pairs("feature-model", output, done.num_pairs, done.held_out, lines, more, as_json)
    return 0


@app.command("preference-head")
def preference_head(
    pairs: Pairs,
    policy: Annotated[Path, typer.Option(metavar="RUN", help="A run or saved policy; the head is saved beside it.")],
    model: Annotated[str | None, typer.Option(help="The policy's LM, where it is not found by its name.")] = None,
    regularisation: Regularisation = 1.0,
    max_tokens: MaxTokens = 512,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Fit a linear head on a policy's last hidden state; the policy stays as it is. Called preference-head."""
    with quiet_stdout():
        from rlprompt.algorithms.preference_head import train_preference_head
        from rlprompt.models import pick_device
        from rlprompt.policies import load_policy
        from rlprompt.preferences import read_pairs

        read = read_pairs(pairs)  # a mistake in the file must show before a model is loaded
        done = train_preference_head(
            load_policy(policy, model=model).to(pick_device(device)),
            read,
            policy,
            held_out=held_out,
            seed=seed,
            regularisation=regularisation,
            max_tokens=max_tokens,
        )
    _say_pairs("preference-head", policy, done.num_pairs, done.held_out, [], {}, as_json)
    return 0


@app.command("success")
def success(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders whose stored answers are read.")],
    output: Output,
    encoder: Annotated[str, typer.Option(help="The sentence encoder.")] = "all-minilm-l6-v2",
    limit: Annotated[int, typer.Option(min=1, help="At most so many outcomes, drawn by the seed.")] = 10_000,
    threshold: Annotated[
        float | None, typer.Option(help="Tasks scored by token F1 or ROUGE: what counts as right.")
    ] = None,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Predict from logs which prompt is right on which input; the reward is called success-model."""
    with quiet_stdout():
        from rlprompt.rewards.learned.success_training import train_success_model
        from rlprompt.runs.outcomes import logged_outcomes

        outcomes = [one for run in runs for one in logged_outcomes(run, threshold=threshold)]
        done = train_success_model(
            outcomes, output, encoder=encoder, held_out=held_out, seed=seed, limit=limit, device=device
        )
    if as_json:
        say_json({"reward": "success-model", **done.model.facts})
        return 0
    _say_success(done, len(outcomes))
    _say_use("success-model", output)
    return 0


def _say_pairs(
    reward: str,
    folder: Path,
    count: int,
    held_out: PairAccuracy,
    lines: list[list[str]],
    more: Mapping[str, Any],
    as_json: bool,
) -> None:
    if as_json:
        whole: Json = {"reward": reward, "pairs": count, "held_out": held_out.to_json(), **more}
        say_json(whole)
        return
    accuracy = "nothing was held out"
    if held_out.total:
        accuracy = (
            f"{number(held_out.share)}  95 % interval {number(held_out.low)} to {number(held_out.high)} "
            f"({held_out.right} of {held_out.total} pairs)"
        )
    say_table([["pairs", str(count)], ["held-out accuracy", accuracy], *lines])
    _say_use(reward, folder)


def _say_success(done: SuccessTraining, count: int) -> None:
    lines = [
        ["outcomes", f"{done.num_triples} of {count}"],
        ["classifier", f"{done.chosen}, by cross-validation"],
        ["AUC on new inputs", _ranking(done.by_input)],
    ]
    if done.by_prompt is not None:
        lines.append(["AUC on new prompts", _ranking(done.by_prompt)])
    if done.selection is not None:
        lines += _selection(done.selection)
    say_table(lines)


def _ranking(found: HeldOutRanking) -> str:
    return (
        f"{_interval(found.auc, found.low, found.high)} ({found.triples} outcomes); for two prompts on one input "
        f"{_interval(found.within_input, found.within_low, found.within_high)}"
    )


def _interval(value: float, low: float, high: float) -> str:
    return f"{number(value)} [{number(low)}, {number(high)}]"


def _selection(found: Selection) -> list[list[str]]:
    return [
        [
            "best of logged prompts",
            f"{number(found.selected)} right on {found.inputs} new inputs, {found.prompts} prompts",
        ],
        ["best fixed prompt", f"{number(found.best_fixed)}; a prompt at random {number(found.average)}"],
        ["difference", f"{found.difference:+.4f}  95 % interval {found.low:+.4f} to {found.high:+.4f}"],
    ]


def _say_use(reward: str, folder: Path) -> None:
    note(f"use it as a reward: {{name: {reward}, kwargs: {{model: {folder}}}}}")
