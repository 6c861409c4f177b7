"""`fit`: trains a run's policy with RLlib's new API stack, one `Algorithm` iteration per run iteration."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig as RLlibConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample

from rlprompt.algorithms.diagnostics import collapse_diagnostics
from rlprompt.algorithms.rllib.batches import PromptBatch, valid_episodes
from rlprompt.algorithms.rllib.learner import PromptLearner
from rlprompt.algorithms.rllib.module import PromptModule
from rlprompt.config import RunConfig
from rlprompt.types import FloatArray, Json, RunContext, Scores

ENV_ID = "rlprompt.envs:rlprompt/TokenPrompt-v0"
OBJECT_STORE_BYTES = 256 * 2**20
"""Everything runs in this process; Ray's default would reserve a third of the memory."""


class PromptAlgorithm(Algorithm):
    """Samples one batch of complete episodes, updates the learner, hands the weights back."""

    def training_step(self) -> None:
        """One on-policy iteration; without a single valid episode the weights stay as they are."""
        episodes, _ = synchronous_parallel_sample(
            worker_set=self.env_runner_group, _uses_new_env_runners=True, _return_metrics=True
        )
        if not valid_episodes(episodes):
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


def rllib_config(config: RunConfig, scorer_spec: Json) -> PromptAlgorithmConfig:
    """Translates a run configuration into RLlib's.

    `complete_episodes` with one episode per sub-env: no episode is cut, none crosses an iteration, and no generation is
    thrown away.
    """
    env, algorithm = config.env, config.algorithm
    learning = {"algorithm": algorithm.model_dump(mode="json"), "seed": config.seed}
    module = {
        "policy": config.policy.model_dump(mode="json"),
        "env": env.model_dump(mode="json"),
        "seed": config.seed,
        "code": scorer_spec.get("code", {}),
    }
    built: PromptAlgorithmConfig = (
        PromptAlgorithmConfig()
        .environment(
            ENV_ID,
            env_config={
                "scorer": scorer_spec,
                "tokenizer": config.policy.model,
                "prompt_length": env.prompt_length,
                "eos": env.eos,
                "mask": env.mask.model_dump(mode="json"),
                "context": config.policy.context,
                "examples_per_step": env.examples_per_step,
                "seed": config.seed,
                "action_mask_in_info": False,  # modules see observations only; 49 KB a step saved
                "action": env.action,
            },
            disable_env_checking=True,
        )
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=env.num_envs,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="complete_episodes",
        )
        .learners(num_learners=0)
        .training(
            lr=algorithm.lr,
            grad_clip=algorithm.grad_clip,
            grad_clip_by="global_norm",
            learner_config_dict=learning,
            add_default_connectors_to_learner_pipeline=False,
            learner_connector=functools.partial(
                _learner_connector,
                gamma=algorithm.gamma,
                lam=algorithm.gae_lambda,
                critic=algorithm.baseline == "critic",
            ),
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=PromptModule, model_config=module))
        .debugging(log_level="ERROR", seed=None)
        .reporting(min_time_s_per_iteration=0)
    )
    return built


def _learner_connector(
    observation_space: Any, action_space: Any, device: Any = None, *, gamma: float, lam: float, critic: bool
) -> PromptBatch:
    return PromptBatch(observation_space, action_space, gamma=gamma, lam=lam, critic=critic)


class Engine:
    """An RLlib algorithm in the service of one run."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        start_ray()
        self.algorithm: PromptAlgorithm = rllib_config(run.config, run.scorer.spec).build_algo()

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's state."""
        self.algorithm.learner_group.foreach_learner(lambda learner: learner.load_prompt_state(state))
        self.algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.algorithm.learner_group, inference_only=True
        )
        self._update_policy()

    def iterate(self, iteration: int) -> tuple[Scores | None, dict[str, float]]:
        """Plays one iteration; returns the scores of its prompts and its metrics."""
        started = time.perf_counter()
        env, module, learner = self._env, self._sampler, self._learner
        env.set_iteration(iteration)
        learner.iteration, learner.diagnostics = iteration, {}
        before = (self.run.scorer.target_seconds, module.seconds, learner.seconds)
        self.algorithm.train()
        self._update_policy()
        scores: Scores | None = env.last_scores
        metrics = dict(learner.diagnostics)
        if scores is not None:
            metrics |= iteration_metrics(scores, env.last_training_rewards, metrics.get("loss/entropy"))
        elapsed = time.perf_counter() - started
        after = (self.run.scorer.target_seconds, module.seconds, learner.seconds)
        spent = dict(zip(("target", "policy", "learner"), np.subtract(after, before).tolist(), strict=True))
        metrics |= {f"time/{name}_s": seconds for name, seconds in spent.items()}
        metrics |= {"time/iteration_s": elapsed, "time/outside_models": 1.0 - sum(spent.values()) / elapsed}
        return scores, metrics

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
    def _sampler(self) -> PromptModule:
        module: PromptModule = self.algorithm.env_runner.module.unwrapped()
        return module

    @property
    def _learner(self) -> PromptLearner:
        learner: PromptLearner = self.algorithm.learner_group._learner
        return learner

    def _update_policy(self) -> None:
        self.run.policy.load_trainable_state(self._learner._prompt_module.policy.trainable_state())


def iteration_metrics(scores: Scores, training_rewards: FloatArray | None, entropy: float | None) -> dict[str, float]:
    """Returns mean and best raw reward of the iteration's prompts, and the collapse diagnostics."""
    known = scores.prompt_valid
    means = scores.mean_rewards[known]
    metrics = {
        "reward/mean": float(means.mean()) if len(means) else float("nan"),
        "reward/best": float(means.max()) if len(means) else float("nan"),
        "accuracy/mean": float(np.nanmean(scores.accuracies)) if np.isfinite(scores.accuracies).any() else float("nan"),
        "failed": float(len(scores.failures)),
    }
    if training_rewards is not None and known.any():
        metrics["reward/training_std"] = float(np.std(training_rewards[known]))
    return metrics | collapse_diagnostics(list(scores.prompts), scores.rewards, scores.valid, entropy=entropy)


def fit(run: RunContext) -> None:
    """Trains `run.policy` in place until the iterations, the budget or the user's patience end."""
    engine = Engine(run)
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
