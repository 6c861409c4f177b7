"""`fit`: trains a run's policy with RLlib's new API stack, one `Algorithm` iteration per run iteration."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig as RLlibConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rlprompt.algorithms.diagnostics import iteration_metrics
from rlprompt.algorithms.learner_processes import check_learners, join_ray
from rlprompt.algorithms.rllib.ahead import AheadRollouts
from rlprompt.algorithms.rllib.batches import PromptBatch, has_valid_episode
from rlprompt.algorithms.rllib.learner import PromptLearner
from rlprompt.algorithms.rllib.module import PromptModule
from rlprompt.algorithms.rllib.remote_learners import RemoteLearners
from rlprompt.algorithms.rllib.rollouts import LocalRollouts, RemoteRollouts, Rollouts, Weights, weights_of
from rlprompt.config import RunConfig
from rlprompt.envs.configured import configured_env
from rlprompt.errors import ConfigError
from rlprompt.policies import PromptPolicy
from rlprompt.ray_session import silence, without_native_messages
from rlprompt.scoring.desk import remote_spec
from rlprompt.types import FloatArray, Json, RunContext, Scores


class PromptAlgorithm(Algorithm):
    """Plays one batch of complete episodes and updates the learner."""

    rollouts: Rollouts
    """Set by the engine; hands the weights to those who play."""
    meanwhile: Callable[[], AbstractContextManager[None]] = nullcontext
    """Set by the engine; what goes on beside the update."""

    def training_step(self) -> None:
        """One on-policy iteration; without a single valid episode the weights stay as they are."""
        episodes = self.rollouts.play()
        if not has_valid_episode(episodes):
            return
        settings = self.config.learner_config_dict["algorithm"]
        epochs = settings["epochs"] if settings["name"] == "ppo" else 1
        with self.meanwhile():
            self.learner_group.update(
                episodes=episodes, timesteps={}, num_epochs=epochs, minibatch_size=settings["minibatch_size"]
            )


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
    env, algorithm, runners = config.env, config.algorithm, config.ray.num_env_runners
    env_id, env_config = configured_env(config, scorer_spec)
    if runners and env.kind != "token-prompt":
        env_config["round_size"] = env.num_envs
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
            num_envs_per_env_runner=episodes_each(config),
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="complete_episodes",
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=PromptModule, model_config=module))
    )
    return with_learner(built, config, PromptBatch, critic=algorithm.baseline == "critic")


def episodes_each(config: RunConfig) -> int:
    """Returns how many episodes of an iteration one env runner plays."""
    return config.env.num_envs // max(config.ray.num_env_runners, 1)


def with_learner(
    built: PromptAlgorithmConfig, config: RunConfig, connector: type[PromptBatch], **arguments: Any
) -> PromptAlgorithmConfig:
    """Adds what is the same for one policy and for several agents: env runners, a local learner, our own connector.

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
    workers = config.ray
    finished: PromptAlgorithmConfig = (
        built.env_runners(
            num_env_runners=workers.num_env_runners,
            num_cpus_per_env_runner=workers.num_cpus_per_env_runner,
            num_gpus_per_env_runner=workers.num_gpus_per_env_runner,
        )
        .fault_tolerance(
            restart_failed_env_runners=True,
            max_num_env_runner_restarts=workers.max_num_env_runner_restarts,
            delay_between_env_runner_restarts_s=0,
        )
        .learners(num_learners=0)
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
        config, spec = run.config, run.scorer.spec
        code = join_ray(run)
        remote = None
        if config.ray.num_env_runners:
            restarts = config.ray.max_num_env_runner_restarts
            remote = RemoteRollouts(run.scorer, share=episodes_each(config), max_restarts=restarts)
            spec = remote_spec(run.scorer, remote.mailbox_name, code)
        with without_native_messages() if remote is not None else nullcontext():
            self.algorithm: PromptAlgorithm = self.rllib_config(spec).build_algo()
        silence()
        if remote is not None:
            remote.attach(self.algorithm)
        rollouts: Rollouts = LocalRollouts(self.algorithm) if remote is None else remote
        self._written_with: Weights | None = None
        """What the iteration to come is written with; None: what the learner has then."""
        if config.algorithm.mode == "async":
            rollouts = self._ahead = AheadRollouts(rollouts, run)
            self.algorithm.meanwhile = self._next_iteration
        self.algorithm.rollouts = self.rollouts = rollouts
        if config.ray.num_learners:
            self._learner.remote = self._remote_learners(code)
        self.start()  # an earlier stage may have trained the policy

    def _remote_learners(self, code: Json | None) -> RemoteLearners:
        """Starts them with code that they find where they are; the run's own scorer is known by the spec as it is."""
        spec = self.run.scorer.spec
        built = self.rllib_config(spec if code is None else {**spec, "code": code})
        modules = built.get_multi_rl_module_spec(spaces=self.algorithm.env_runner_group.get_spaces())
        return RemoteLearners(built, modules, self.run.config.ray)

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        check_settings(self.run.config, self.run.policy)
        check_learners(self.run.config, [self.run.policy])

    def rllib_config(self, scorer_spec: Json) -> PromptAlgorithmConfig:
        """Returns RLlib's configuration of the run."""
        return rllib_config(self.run.config, scorer_spec)

    def start(self) -> None:
        """Hands the run's policy to the learner."""
        self._learner.start_from(self.run.policy)

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's state."""
        self.algorithm.learner_group.foreach_learner(lambda learner: learner.load_prompt_state(state))
        self.update_policy()

    def iterate(self, iteration: int) -> tuple[Scores | None, dict[str, float]]:
        """Plays one iteration; returns the scores of its prompts and its metrics."""
        started = time.perf_counter()
        learner = self._learner
        self.prepare(iteration)
        now, behind = weights_of(learner), self._written_with
        self.rollouts.prepare(iteration, now if behind is None else behind)
        for name, module in learner.prompt_modules.items():
            module.behaviour = None if behind is None else behind[name]["policy"]
        self.weight_lag, self._written_with = int(behind is not None), now if self._is_async else None
        learner.iteration, learner.diagnostics = iteration, {}
        before = self._seconds()
        self.algorithm.train()
        learner.end_iteration()
        self.update_policy()
        scores = self.rollouts.scores
        metrics = dict(learner.diagnostics)
        if scores is not None:
            metrics |= iteration_metrics(scores, self.rollouts.training_rewards, _entropy(metrics))
        elapsed = time.perf_counter() - started
        spent = dict(zip(("target", "policy", "learner"), np.subtract(self._seconds(), before).tolist(), strict=True))
        metrics |= {f"time/{name}_s": seconds for name, seconds in spent.items()}
        metrics |= {"time/iteration_s": elapsed}
        if self._is_async:
            metrics |= {"weight_lag": float(self.weight_lag)}
        else:  # nothing overlaps
            metrics |= {"time/outside_models": 1.0 - sum(spent.values()) / elapsed}
        return scores, metrics

    @property
    def _is_async(self) -> bool:
        return bool(self.run.config.algorithm.mode == "async")

    @contextmanager
    def _next_iteration(self) -> Iterator[None]:
        """Plays the next iteration, if there is one, with the weights from before the update that goes on."""
        following, weights = self._learner.iteration + 1, self._written_with
        if weights is None or following >= self.run.config.algorithm.iterations:
            yield
            return
        with self._ahead.playing(following, weights):
            yield

    def prepare(self, iteration: int) -> None:
        """What has to be done before an iteration."""
        if iteration % self.run.config.algorithm.nlpo_every == 0:
            self._refresh_masking()

    def _seconds(self) -> tuple[float, float, float]:
        """Time that target, sampling policies and learner have taken so far."""
        return self.run.scorer.target_seconds, self.rollouts.seconds, self._learner.seconds

    @property
    def training_rewards(self) -> FloatArray | None:
        """The stabilised rewards of the newest iteration's prompts, (P,)."""
        return self.rollouts.training_rewards

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs."""
        state: dict[str, Any] = self._learner.prompt_state()
        return state

    def saved(self) -> dict[str, Any]:
        """Returns what `resume` needs: the state, and the weights that the next iteration is written with."""
        behind = self._written_with
        return self.state() if behind is None else {**self.state(), "written_with": behind}

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on with what `saved` returned."""
        self.restore(state)
        self._written_with = state.get("written_with")

    def close(self) -> None:
        """Frees the algorithm's workers."""
        if self._learner.remote is not None:
            self._learner.remote.close()
        self.algorithm.stop()
        self.rollouts.close()

    @property
    def _learner(self) -> PromptLearner:
        learner: PromptLearner = self.algorithm.learner_group._learner
        return learner

    def _refresh_masking(self) -> None:
        """Lets NLPO's masking copy follow the policy; the samplers get it with the weights."""
        module = self._learner._prompt_module
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
            engine.resume(state)
        for iteration in range(start, run.config.algorithm.iterations):
            if run.stop_reason() is not None:
                return
            scores, metrics = engine.iterate(iteration)
            run.end_iteration(
                iteration,
                scores=scores,
                metrics=metrics,
                state=engine.saved,
                training_rewards=engine.training_rewards,
                weight_lag=engine.weight_lag,
            )
    finally:
        engine.close()
