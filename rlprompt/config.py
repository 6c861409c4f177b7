"""The typed configuration of a run: YAML plus `a.b=c` overrides fill these models; unknown keys are errors.

A default is the paper's value where a paper has one (source beside it), and safe on a laptop otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from rlprompt.agents import AgentConfig, TeamConfig, check_names
from rlprompt.cluster import OFF_POLICY, RayConfig, check_ray
from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.overrides import apply_overrides
from rlprompt.sections import CacheMode
from rlprompt.sections import Section as Section

Range = tuple[float, float]
PreferenceLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "ipo",
    "hinge",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
]
"""TRL's losses of its DPO trainer that learn from pairs; all do with policy and reference."""


class TaskConfig(Section):
    """Which examples, how many, and how the target reads them."""

    name: str = "rotten-tomatoes"
    """A built-in task, or the path of a task card (YAML)."""
    data: str | None = None
    """Folder with train, dev and test files that replace the card's source."""
    variant: Literal["default", "masked", "chat"] = "default"
    """"masked" takes the card's template for masked LMs, "chat" the one of chat messages."""
    max_input_words: int | None = Field(default=None, ge=1)
    """Inputs are cut after so many words; None takes what the card says."""
    shots: int | None = Field(default=16, ge=1)
    """Examples per class in train, drawn by `split_seed`; None takes the whole split (RLPrompt: 16)."""
    dev_shots: int | None = Field(default=32, ge=1)
    """Examples per class in dev; None takes the whole split."""
    split_seed: int = Field(default=0, ge=0)
    test_limit: int | None = Field(default=None, ge=1)
    """The first N test rows in file order; None takes all."""
    template: str | list[dict[str, str]] | None = None
    """Replaces the card's template."""
    choices: list[str] | None = None
    """Replaces the card's choices (index = label)."""


class TargetConfig(Section):
    """The frozen LLM that is prompted."""

    name: str = "smollm2-135m-instruct"
    """A model name (installed package, folder, hub id), `planted:LANDSCAPE` or `openai:MODEL`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """"auto": bfloat16 where the device computes it faster (AVX512-BF16, AMX, CUDA), else float32."""
    device: str = "auto"
    revision: str | None = None
    cache: CacheMode = "off"
    """The SQLite cache of answers, shared between runs."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the target, for example `base_url` or `kv_cache_bytes`."""


class RewardConfig(Section):
    """One component of the reward."""

    name: str
    """A registered name, or my_module:my_function."""
    weight: float = 1.0
    kwargs: dict[str, Any] = Field(default_factory=dict)


class StabiliserConfig(Section):
    """One stabiliser; they are applied in the order of the list."""

    name: str
    kwargs: dict[str, Any] = Field(default_factory=dict)


class PolicyConfig(Section):
    """The prompt policy: the only thing that is trained."""

    kind: str = "lm-adaptor"
    model: str = "smollm2-135m-instruct"
    """The frozen LM under the adaptor; also names the tokenizer of `categorical`."""
    revision: str | None = None
    context: str = ""
    """What the policy reads before it writes; empty means the tokenizer's BOS or EOS token, as published."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "cpu"
    """Where the policy writes and learns: cpu, or with what TRL trains and random also cuda, cuda:N or auto."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the policy's class: mode, hidden, top_k, fluent_top_k, logit_bias, ..."""


class MaskConfig(Section):
    """Which tokens may be written (see `rlprompt.masks`)."""

    readable_ascii: bool = False
    """Only tokens that are printable ASCII."""
    word_start: bool = False
    """Only tokens that begin a word (leading space), so that every token is a word or its beginning."""
    no_repeat: bool = False
    """A token may not occur twice in a prompt."""
    candidates: list[str] | str | None = None
    """Only the tokens of these texts: a list, or the path of a file with one text a line."""


class EnvConfig(Section):
    """The environment: `rlprompt/TokenPrompt-v0`, `Rewrite-v0`, `Stimulus-v0` or `MultiPrompter-v0`."""

    kind: Literal["token-prompt", "rewrite", "stimulus", "multi"] = "token-prompt"
    """What the policy writes: a few tokens, a rewrite of a draft instruction or of an input, a hint for one input; or,
    with several agents that take turns, the segments of one prompt."""
    agents: list[AgentConfig] = Field(default_factory=list)
    """Multi: the agents in the order of their turns; lengths, ends and meta-prompts are theirs."""
    level: Literal["task", "instance"] = "task"
    """One prompt for all examples, or one for each example's input (a stimulus is always for one input)."""
    meta_prompt: str = "prewrite"
    """A registered meta-prompt (`rlprompt list meta-prompts`) or a text with slots: {draft}, {input}, {feedback}."""
    draft: str = ""
    """The draft instruction that a rewrite starts from."""
    chat: bool = True
    """Whether the meta-prompt is sent through the policy tokenizer's chat template, where it has one."""
    compose: Literal["replace", "append", "prepend", "demonstration"] = "replace"
    """How the written text and the user's input become what the target reads, at instance level."""
    rewrites_per_input: int = Field(default=1, ge=1)
    """Instance level: rewrites of each drawn input in one step; divides `num_envs`."""
    samples: int = Field(default=1, ge=1)
    """Answers drawn from the target for each (prompt, example); the reward is their mean."""
    best_of: int | None = Field(default=None, ge=1)
    """The training reward is the expected best of so many of the `samples`, not their mean (RLPrompt's style transfer:
    32 of 128). Only the training reward: what is recorded, and what the choice on dev compares, is the mean over the
    samples, because that is what one answer of the served prompt is worth. Best of N is worth having only to those who
    draw N answers and keep the one that the reward likes best."""
    turns: int = Field(default=1, ge=1)
    """With more than one, the target's failed answer enters the next observation and the policy writes again."""
    dialogue: bool = False
    """Rewrite at instance level: between turns the target talks with the scripted partner of a task of dialogues."""
    step_reward: Literal["terminal", "difference"] = "terminal"
    """Reward at the end, or of each prefix (in dialogues after each turn) less that of the one before."""
    hint_reward: float = Field(default=0.0, ge=0)
    """Stimulus: weight of the step reward for every keyword of the reference that the hint names."""
    prompt_length: int = Field(default=5, ge=1)
    """Tokens of a prompt; with `eos` the most tokens (RLPrompt: 5)."""
    eos: bool = False
    """Whether the policy may end the prompt earlier by writing EOS."""
    num_envs: int = Field(default=16, ge=1)
    """Prompts per iteration, scored in one call (RLPrompt: 16)."""
    action: Literal["token", "sequence"] = "token"
    """One token a step, or the whole prompt as one `MultiDiscrete` action."""
    examples_per_step: int | None = Field(default=None, ge=1)
    """Minibatch of train examples per iteration, stratified by class; None takes all (as published)."""
    mask: MaskConfig = MaskConfig()

    @property
    def per_input(self) -> bool:
        """Whether a prompt is written for one example's input, and scored on that example only."""
        return self.kind == "stimulus" or (self.kind in ("rewrite", "multi") and self.level == "instance")

    @property
    def ends_with_eos(self) -> bool:
        """Whether EOS ends a prompt; rewrites and hints always end so."""
        return self.eos or self.kind != "token-prompt"

    @model_validator(mode="after")
    def _agents_fit(self) -> EnvConfig:
        if self.dialogue and not (self.kind == "rewrite" and self.level == "instance"):
            raise ValueError("dialogue is for env.kind=rewrite and env.level=instance; set them so, or remove it")
        if self.kind != "multi":
            if self.agents:
                raise ValueError(f"agents is for env.kind=multi, but env.kind is '{self.kind}'; remove it")
            return self
        check_names(self.agents)
        for name in ("prompt_length", "eos", "meta_prompt", "turns", "hint_reward"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is not for env.kind=multi, where each agent has its own part; remove it")
        return self


class AlgorithmConfig(Section):
    """How the policy learns."""

    name: str = "ppo"
    """ppo, sql, reinforce, grpo, rloo; from data: sft, dpo, rrhf; in rounds: online-dpo, expert-iteration; or a
    baseline: random (samples of the untrained policy at equal budget), greedy (its most probable text); or evolve
    (rewrites of single inputs, improved in rounds by an untrained policy that reads the best ones so far)."""
    mode: Literal["sync", "async"] = "sync"
    """"async" (ppo, sql) writes and scores the next prompts while it learns from the last ones, so with weights that
    are one update old."""
    iterations: int = Field(default=40, ge=1)
    lr: float = Field(default=5e-5, gt=0)
    """Adam's learning rate (RLPrompt: 5e-5)."""
    grad_clip: float = Field(default=5.0, gt=0)
    """Largest gradient norm (RLPrompt: 5.0)."""
    epochs: int = Field(default=2, ge=1)
    """Passes over each batch (PPO; SQL and REINFORCE make one), or over the pairs or texts of each round."""
    minibatch_size: int | None = Field(default=None, ge=1)
    """Episodes, pairs or contexts per gradient step; None takes the whole batch (of files: `env.num_envs`)."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE lambda (arXiv:1506.02438, eq. 16); used with baseline "critic"."""
    baseline: Literal["none", "critic"] = "none"
    """"critic" trains a value head and uses GAE; "none" takes the training reward itself as advantage, which is
    right with the leave-one-out stabiliser."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """PPO ratio stays in [1 - clip, 1 + clip] (arXiv:1707.06347, eq. 7)."""
    vf_coeff: float = Field(default=0.5, ge=0)
    entropy_coeff: float = Field(default=0.0, ge=0)
    kl_coeff: float = Field(default=0.0, ge=0)
    """Weight of KL(policy || starting policy) per token."""
    kl_in: Literal["loss", "reward"] = "loss"
    """"loss" adds the exact KL at the visited states; "reward" subtracts log(policy / start) of each written token."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL in nats per prompt that an adaptive weight aims at; None keeps `kl_coeff` (arXiv:1909.08593, section 2.2)."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Prompts over which the adaptive weight moves (arXiv:1909.08593)."""
    nlpo_top_p: float | None = Field(default=None, gt=0, le=1)
    """PPO over the nucleus of a slowly refreshed copy of the policy only (NLPO, arXiv:2210.01241); None is off."""
    nlpo_every: int = Field(default=20, ge=1)
    """Iterations between two refreshes of NLPO's masking copy."""
    sql_variant: Literal["v1", "v2", "v3", "v2_v3"] = "v2_v3"
    """Soft Q-learning loss; v2_v3 is the published mix (v2 + v3) / 2."""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    """GRPO: divide advantages by the spread of their group (arXiv:2402.03300) or of the batch; "none" keeps rewards and
    KL in one unit (arXiv:2503.20783)."""
    loss_type: Literal["dr_grpo", "grpo", "bnpo", "dapo"] = "dr_grpo"
    """GRPO: how tokens are summed up. "dr_grpo" divides by a constant; the others, in different ways, by how many were
    written, which prefers short good and long bad prompts."""
    polyak: float = Field(default=0.001, gt=0, le=1)
    """Target network step tau (RLPrompt: 0.001, before each update)."""
    reward_shaping: tuple[Range, Range] = ((0.0, 1.0), (0.0, 5.0))
    """SQL: linear map of the training reward from the first to the second range (RLPrompt FSC: [0,1] to [0,5])."""
    preference_loss: PreferenceLoss = "sigmoid"
    """DPO, online or not: "sigmoid" is DPO's own (arXiv:2305.18290, eq. 7), "sigmoid_norm" the same per token
    (arXiv:2408.10573), "ipo" IPO (arXiv:2310.12036, eq. 17), "hinge" SLiC's; the names are TRL's."""
    beta: float = Field(default=0.1, gt=0)
    """DPO: weight of the KL to the reference, tau of IPO (DPO: 0.1; FIPO and MePO: 0.01)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """DPO with "robust", "exo_pair" or "aot": share of pairs that may be the wrong way round."""
    pair_weights: Literal["given", "gap"] = "given"
    """DPO: "given" takes `weight` of the pairs file, 1 without; "gap" multiplies it by the gap of the rewards over the
    mean gap (OPTune, arXiv:2406.07657)."""
    rank_weight: float = Field(default=1.0, ge=0)
    """RRHF: weight of the ranking loss beside the loss on the best text (arXiv:2304.05302: 1)."""
    pair_margin: float = Field(default=0.0, ge=0)
    """Rounds: two texts make a pair where their scores are further apart than this; ties never do."""
    pairs_per_input: int = Field(default=1, ge=1)
    """Online DPO: best with worst, second with second last, ...: so many pairs of the texts for one input at most."""
    pair_by: str | None = None
    """Rounds: the reward component that pairs and picks, for example a judge of weight 0; None is the training reward
    (self-rewarding, arXiv:2401.10020). What is recorded stays the reward."""
    regenerate: float = Field(default=1.0, gt=0, le=1)
    """Rounds: after the first, the share of inputs whose texts are written again, lowest mean reward first; the others
    keep their texts and scores (OPTune). Below 1 all rounds have the inputs of the first."""
    items: Literal["all", "regret", "low-initial-reward", "disagreement"] = "all"
    """Rounds: which inputs of the first round take part in the later ones; "all" draws other inputs every round."""
    items_share: float = Field(default=0.5, gt=0, le=1)
    """Rounds: the share of inputs that take part, where `items` chooses them."""
    survivors: int = Field(default=3, ge=1)
    """Evolve: the best texts of each input that the policy reads, with their scores, before it writes new ones."""

    @model_validator(mode="after")
    def _can_lag(self) -> AlgorithmConfig:
        if self.mode == "async" and self.name not in OFF_POLICY:
            raise ValueError(
                f"mode is 'async', but {self.name} learns from prompts of the newest weights only; use mode=sync, or "
                f"name={' or '.join(OFF_POLICY)}"
            )
        if self.mode == "async" and self.nlpo_top_p is not None:
            raise ValueError("mode is 'async', but NLPO's masking copy must not lag; use mode=sync, or no nlpo_top_p")
        return self


class BudgetConfig(Section):
    """What the run may spend; None is unlimited. `max_target_calls` counts `used` (see the ledger)."""

    max_target_calls: int | None = Field(default=None, ge=1)
    max_target_tokens: int | None = Field(default=None, ge=1)
    max_cost_usd: float | None = Field(default=None, gt=0)
    max_wall_s: float | None = Field(default=None, gt=0)


class SelectionConfig(Section):
    """How the best prompt is chosen, on dev only."""

    top: int = Field(default=16, ge=1)
    """At the end, the top prompts by train reward are scored on dev, the best of them on dev is kept."""
    every: int | None = Field(default=None, ge=1)
    """Also score the policy's best new prompt on dev every so many iterations (counts in the budget)."""
    by: Literal["accuracy", "reward"] = "accuracy"
    """Criterion on dev; ties go to the other one."""
    racing: bool = False
    """Drop prompts early that cannot win any more: halve the field on growing parts of dev."""


class MonitorConfig(Section):
    """A watch for reward hacking: does a proxy reward rise while a gold reward falls? See `docs/judges.md`."""

    proxy: str
    """A component of the reward, as it is recorded: "judge", "ensemble/disagreement"; "reward" is their sum."""
    gold: str
    """A component that is not learnt from (weight 0), or "accuracy"."""
    window: int = Field(default=10, ge=4)
    """Iterations that are looked at."""
    threshold: float = Field(default=0.7, gt=0, le=1)
    """Both trends must be at least so clear: correlation with time, from 0 to 1."""
    min_fall: float = Field(default=0.0, ge=0)
    """The gold reward's fitted line must fall at least so much over the window."""


class RunSettings(Section):
    """Where and how a run is kept."""

    dir: str = "runs"
    """Folder of all runs; the environment variable RLPROMPT_RUN_DIR wins over the default."""
    checkpoint_every: int = Field(default=5, ge=1)
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    max_failed_fraction: float = Field(default=0.2, ge=0, le=1)
    tensorboard: bool = True
    mirror: str | None = None
    """fsspec URL (s3://, gs://, file://, ...) that gets a copy of the run folder; see `docs/cluster.md`."""


class StageConfig(Section):
    """One stage of a run; later stages start from the policy of the one before."""

    name: str
    """Its folder in the run, and its name in events."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """`sft`, `dpo` and `rrhf` learn from `data` and never ask the target; the others learn from rewards."""
    data: dict[str, Any] = Field(default_factory=dict)
    """What it learns from: `sft` {pairs: FILE} or {extractor: NAME}, `dpo` {pairs: FILE, val: FILE}, `rrhf` {ranked:
    FILE, val: FILE}."""


class RunConfig(Section):
    """One training or search run."""

    name: str = "run"
    seed: int = Field(default=0, ge=0)
    task: TaskConfig = TaskConfig()
    target: TargetConfig = TargetConfig()
    policy: PolicyConfig = PolicyConfig()
    env: EnvConfig = EnvConfig()
    team: TeamConfig = TeamConfig()
    reward: list[RewardConfig] = Field(default_factory=lambda: [RewardConfig(name="gap")], min_length=1)
    stabilisers: list[StabiliserConfig] = Field(default_factory=list)
    calibration: Literal["none", "median", "contextual"] = "none"
    """Calibration of choice probabilities while training, fitted on train only."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    stages: list[StageConfig] = Field(default_factory=list)
    """What comes before `algorithm`, in order: prepare, SFT warm start, ..."""
    data: dict[str, Any] = Field(default_factory=dict)
    """What `algorithm` learns from, where it is `sft`, `dpo` or `rrhf`; as `data` of a stage."""
    budget: BudgetConfig = BudgetConfig()
    selection: SelectionConfig = SelectionConfig()
    monitor: MonitorConfig | None = None
    ray: RayConfig = RayConfig()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _sections_fit(self) -> RunConfig:
        if self.algorithm.name == "sql" and self.algorithm.baseline == "critic":
            raise ValueError("algorithm.baseline is 'critic' but sql has no critic; remove it")
        over_prompts = {"leave-one-out", "z-score"} & {entry.name for entry in self.stabilisers}
        if over_prompts and self.env.num_envs < 2:
            raise ValueError(
                f"stabiliser {sorted(over_prompts)[0]} compares the prompts of a step, but env.num_envs is "
                f"{self.env.num_envs}; use at least 2"
            )
        if not self.env.per_input and (self.env.samples > 1 or self.env.best_of is not None):
            raise ValueError(
                "env.samples and env.best_of are for prompts that are written for one input; remove them, or set "
                "env.kind=rewrite and env.level=instance"
            )
        if self.env.best_of is not None and self.env.step_reward == "difference":
            raise ValueError("env.best_of is about whole prompts; set env.step_reward=terminal, or remove it")
        self._check_team()
        check_ray(self.ray, self.algorithm.name, self.env.num_envs, self.target.name)
        return self

    def _check_team(self) -> None:
        if self.env.kind != "multi":
            if self.team != TeamConfig():
                raise ValueError(f"team is for env.kind=multi, but env.kind is '{self.env.kind}'; remove it")
            return
        if self.algorithm.name not in ("ppo", "random"):
            raise ValueError(
                f"env.kind is 'multi', which ppo trains and random samples, but algorithm.name is "
                f"'{self.algorithm.name}'; take one of these"
            )
        if self.stages or self.data:
            raise ValueError("stages and data are for one policy; with env.kind=multi give an agent a start instead")
        if self.algorithm.nlpo_top_p is not None:
            raise ValueError("algorithm.nlpo_top_p is for one policy; remove it with env.kind=multi")
        if all(agent.frozen for agent in self.env.agents) and self.algorithm.name == "ppo":
            raise ValueError("all of env.agents are frozen, so nothing learns; leave one of them free")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Reads a YAML file and applies `a.b=c` overrides (values are YAML).

    Raises:
        ConfigError: missing file, broken YAML, unknown key (with close matches) or a value out of range.
    """
    return parse_config(read_mapping(Path(path)), overrides, source=str(path))


def read_mapping(file: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping; raises ConfigError as `load_config` does."""
    if not file.is_file():
        raise ConfigError(f"configuration not found: {file}; check the path, or see 'rlprompt list recipes'")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold a mapping of sections, got {type(data).__name__}")
    return data


def parse_config(
    data: dict[str, Any], overrides: list[str] | tuple[str, ...] = (), *, source: str = "configuration"
) -> RunConfig:
    """Builds the configuration from a mapping and overrides; raises ConfigError as `load_config` does."""
    merged = apply_overrides(data, overrides)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, RunConfig)}") from error


def dump_config(config: RunConfig) -> str:
    """Returns the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first mistake of a validation: where, what was got, what to do."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'{did_you_mean(str(first['loc'][-1]), _keys_at(model, first['loc'][:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}, got {first['input']!r}" if where else message


def _keys_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    current = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation: Any = current.model_fields[part].annotation if part in current.model_fields else None
        for inner in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                current = inner
    return list(current.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
