"""`fit`: trains a run's policy with RLlib's new API stack, one `Algorithm` iteration per run iteration."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig as RLlibConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample

from rlprompt.algorithms.diagnostics import iteration_metrics
from rlprompt.algorithms.rllib.batches import PromptBatch, has_valid_episode
from rlprompt.algorithms.rllib.learner import PromptLearner
from rlprompt.algorithms.rllib.module import PromptModule
from rlprompt.config import RunConfig
from rlprompt.envs.configured import configured_env
from rlprompt.errors import ConfigError
from rlprompt.policies import PromptPolicy
from rlprompt.types import FloatArray, Json, RunContext, Scores

OBJECT_STORE_BYTES = 256 * 2**20
"""Everything runs in this process; Ray's default would reserve a third of the memory."""


class PromptAlgorithm(Algorithm):
    """Samples one batch of complete episodes, updates the learner, hands the weights back."""

    def training_step(self) -> None:
        """One on-policy iteration; without a single valid episode the weights stay as they are."""
        episodes, _ = synchronous_parallel_sample(
            worker_set=self.env_runner_group, _uses_new_env_runners=True, _return_metrics=True
        )
        if not has_valid_episode(episodes):
            return
        settings = self.config.learner_config_dict["algorithm"]
        epochs = settings["epochs"] if settings["name"] == "ppo" else 1
        self.learner_group.update(
            episodes=episodes, timesteps={}, num_epochs=epochs, minibatch_size=settings["minibatch_size"]
        )
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)


class PromptAlgorithmConfig(RLlibConfig):
    """RLlib's configuration with `PromptAlgorithm` as its algorithm."""

    def __init__(self) -> None:
        super().__init__(algo_class=PromptAlgorithm)

    def get_default_learner_class(self) -> type[PromptLearner]:
        """Returns the learner that minimises our losses."""
        return PromptLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Returns the module around a prompt policy; `rllib_config` adds which one."""
        return RLModuleSpec(module_class=PromptModule)


def start_ray() -> None:
    """Starts Ray on this machine only (loopback, no dashboard), unless the process is connected already."""
    for name in ("ray", "ray.rllib", "ray.tune"):  # what fails is raised, and reported once, by us
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not ray.is_initialized():
        ray.init(
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def check_settings(config: RunConfig, policy: PromptPolicy, *, value_head: bool = True) -> None:
    """Refuses settings that do not go together.

    Args:
        config: of the run.
        policy: who is trained.
        value_head: whether the critic of the configuration is the policy's own.

    Raises:
        ConfigError: so it is; the message says what to do.
    """
    algorithm = config.algorithm
    if policy.device.type != "cpu":
        raise ConfigError(
            f"policy.device is {config.policy.device}, but {algorithm.name} trains on the CPU; use policy.device=cpu, "
            "or algorithm.name=grpo or rloo"
        )
    if algorithm.name == "sql" and not policy.frozen_features:
        raise ConfigError(
            f"algorithm.name is sql, which would need a second '{policy.kind}' as target network; use ppo or "
            "reinforce, or policy.kind=lm-adaptor"
        )
    if algorithm.name == "sql" and algorithm.kl_in == "reward" and algorithm.kl_coeff > 0:
        raise ConfigError("algorithm.kl_in is 'reward', but sql keeps its own entropy in the reward; use kl_in=loss")
    if algorithm.nlpo_top_p is not None and algorithm.name != "ppo":
        raise ConfigError(
            f"algorithm.nlpo_top_p is {algorithm.nlpo_top_p}, but NLPO is a kind of PPO; use algorithm.name=ppo, or "
            f"remove it for {algorithm.name}"
        )
    if algorithm.kl_target is not None and algorithm.kl_coeff == 0:
        raise ConfigError(
            f"algorithm.kl_target is {algorithm.kl_target}, but a kl_coeff of 0 stays 0; set the kl_coeff to start from"
        )
    if value_head and algorithm.baseline == "critic" and getattr(policy.settings, "value_head", True) is False:
        raise ConfigError("algorithm.baseline is 'critic', but the policy has value_head: false; set one or the other")


def rllib_config(config: RunConfig, scorer_spec: Json) -> PromptAlgorithmConfig:
    """Translates a run configuration into RLlib's.

    `complete_episodes` with one episode per sub-env: no episode is cut, none crosses an iteration, and no generation is
    thrown away.
    """
    env, algorithm = config.env, config.algorithm
    env_id, env_config = configured_env(config, scorer_spec)
    module = {
        "policy": config.policy.model_dump(mode="json"),
        "env": env.model_dump(mode="json"),
        "algorithm": algorithm.model_dump(mode="json"),
        "seed": config.seed,
        "code": scorer_spec.get("code", {}),
    }
    built: PromptAlgorithmConfig = (
        PromptAlgorithmConfig()
        .environment(env_id, env_config=env_config, disable_env_checking=True)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=env.num_envs,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="complete_episodes",
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=PromptModule, model_config=module))
    )
    return with_learner(built, config, PromptBatch, critic=algorithm.baseline == "critic")


def with_learner(
    built: PromptAlgorithmConfig, config: RunConfig, connector: type[PromptBatch], **arguments: Any
) -> PromptAlgorithmConfig:
    """Adds what is the same for one policy and for several agents: one local learner behind our own connector.

    Args:
        built: environment, runners and modules.
        config: of the run.
        connector: makes the train batch of complete episodes.
        **arguments: its own, beside `gamma`, `lam`, `penalise` and `measure_kl`.
    """
    algorithm = config.algorithm
    penalise = algorithm.kl_in == "reward" and algorithm.kl_coeff > 0
    settings = {
        **arguments,
        "gamma": algorithm.gamma,
        "lam": algorithm.gae_lambda,
        "penalise": penalise,
        "measure_kl": penalise or algorithm.kl_target is not None,
    }
    learning = {
        "algorithm": algorithm.model_dump(mode="json"),
        "team": config.team.model_dump(mode="json"),
        "seed": config.seed,
    }
    finished: PromptAlgorithmConfig = (
        built.learners(num_learners=0)
        .training(
            lr=algorithm.lr,
            grad_clip=algorithm.grad_clip,
            grad_clip_by="global_norm",
            learner_config_dict=learning,
            add_default_connectors_to_learner_pipeline=False,
            learner_connector=functools.partial(_learner_connector, connector, settings),
        )
        .debugging(log_level="ERROR", seed=None)
        .reporting(min_time_s_per_iteration=0)
    )
    return finished


def _learner_connector(
    connector: type[PromptBatch],
    settings: dict[str, Any],
    observation_space: Any,
    action_space: Any,
    device: Any = None,
) -> PromptBatch:
    return connector(observation_space, action_space, **settings)


class Engine:
    """An RLlib algorithm in the service of one run."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.check()
        start_ray()
        self.algorithm: PromptAlgorithm = self.rllib_config().build_algo()
        self.start()  # an earlier stage may have trained the policy
        self._sync_sampler()

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        check_settings(self.run.config, self.run.policy)

    def rllib_config(self) -> PromptAlgorithmConfig:
        """Returns RLlib's configuration of the run."""
        return rllib_config(self.run.config, self.run.scorer.spec)

    def start(self) -> None:
        """Hands the run's policy to the learner."""
        self._learner.start_from(self.run.policy)

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's state."""
        self.algorithm.learner_group.foreach_learner(lambda learner: learner.load_prompt_state(state))
        self._sync_sampler()
        if self._sampler.masking is not None:
            self._sampler.masking.load(state["masking"])
        self.update_policy()

    def iterate(self, iteration: int) -> tuple[Scores | None, dict[str, float]]:
        """Plays one iteration; returns the scores of its prompts and its metrics."""
        started = time.perf_counter()
        env, learner = self._env, self._learner
        env.set_iteration(iteration)
        for module in self._samplers:
            module.policy.forget()
        self.prepare(iteration)
        learner.iteration, learner.diagnostics = iteration, {}
        before = self._seconds()
        self.algorithm.train()
        learner.end_iteration()
        self.update_policy()
        scores: Scores | None = env.last_scores
        metrics = dict(learner.diagnostics)
        if scores is not None:
            metrics |= iteration_metrics(scores, env.last_training_rewards, _entropy(metrics))
        elapsed = time.perf_counter() - started
        spent = dict(zip(("target", "policy", "learner"), np.subtract(self._seconds(), before).tolist(), strict=True))
        metrics |= {f"time/{name}_s": seconds for name, seconds in spent.items()}
        metrics |= {"time/iteration_s": elapsed, "time/outside_models": 1.0 - sum(spent.values()) / elapsed}
        return scores, metrics

    def prepare(self, iteration: int) -> None:
        """What has to be done before an iteration."""
        if iteration % self.run.config.algorithm.nlpo_every == 0:
            self._refresh_masking()

    def _seconds(self) -> tuple[float, float, float]:
        """Time that target, sampling policies and learner have taken so far."""
        sampling = sum(module.seconds for module in self._samplers)
        return self.run.scorer.target_seconds, sampling, self._learner.seconds

    @property
    def training_rewards(self) -> FloatArray | None:
        """The stabilised rewards of the newest iteration's prompts, (P,)."""
        rewards: FloatArray | None = self._env.last_training_rewards
        return rewards

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs."""
        state: dict[str, Any] = self._learner.prompt_state()
        return state

    def close(self) -> None:
        """Frees the algorithm's workers."""
        self.algorithm.stop()

    @property
    def _env(self) -> Any:
        return self.algorithm.env_runner.env.unwrapped

    @property
    def _samplers(self) -> list[PromptModule]:
        return [self._sampler]

    @property
    def _sampler(self) -> PromptModule:
        module: PromptModule = self.algorithm.env_runner.module.unwrapped()
        return module

    @property
    def _learner(self) -> PromptLearner:
        learner: PromptLearner = self.algorithm.learner_group._learner
        return learner

    def _sync_sampler(self) -> None:
        self.algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.algorithm.learner_group, inference_only=True
        )

    def _refresh_masking(self) -> None:
        """Lets NLPO's masking copies follow; sampler and learner hold the same weights here."""
        for module in (self._sampler, self._learner._prompt_module):
            if module.masking is not None:
                module.masking.refresh(module.policy)

    def update_policy(self) -> None:
        """Lets the run's policy follow the learner."""
        self.run.policy.load_trainable_state(self._learner._prompt_module.policy.trainable_state())


def _entropy(metrics: Mapping[str, float]) -> float | None:
    """The policy's entropy per token; of several policies the mean."""
    found = [value for name, value in metrics.items() if name.startswith("loss/entropy")]
    return sum(found) / len(found) if found else None


def fit(run: RunContext) -> None:
    """Trains `run.policy` in place until the iterations, the budget or the user's patience end."""
    from rlprompt.algorithms.rllib.game_engine import GameEngine

    engine = GameEngine(run) if run.config.env.kind == "multi" else Engine(run)
    try:
        restored = run.restored_state()
        start = 0
        if restored is not None:
            start, state = restored
            engine.restore(state)
        for iteration in range(start, run.config.algorithm.iterations):
            if run.stop_reason() is not None:
                return
            scores, metrics = engine.iterate(iteration)
            run.end_iteration(
                iteration,
                scores=scores,
                metrics=metrics,
                state=engine.state,
                training_rewards=engine.training_rewards,
            )
    finally:
        engine.close()
