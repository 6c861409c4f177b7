"""Where a run computes: in one process, with workers on this machine, or on a Ray cluster."""

from __future__ import annotations

from pydantic import Field, field_validator

from rlprompt.sections import Section

ROLLING_OUT = ("ppo", "sql", "reinforce")
"""Algorithms whose prompts can be written by several workers."""
LEARNING_APART = (
    "ppo",
    "reinforce",
    "grpo",
    "rloo",
    "sft",
    "dpo",
    "rrhf",
    "online-dpo",
    "expert-iteration",
)
"""Algorithms whose gradients several learners can compute."""
OFF_POLICY = ("ppo", "sql")
"""Of these, those that can learn from prompts of older weights: by PPO's ratio, or off-policy by nature."""


class RayConfig(Section):
    """Where prompts are written and a local target is computed.

    Nothing here changes what a run finds, the same prompts, rewards and weights, as long as all compute alike: with the
    same number of threads, on the same kind of device.
    """

    address: str = "local"
    """"local" starts Ray on this machine, reachable from it only; "auto" joins the cluster that this machine is part
    of; ray://HOST:PORT or HOST:PORT joins another one."""
    num_env_runners: int = Field(default=0, ge=0)
    """Processes that write prompts, each an equal share of `env.num_envs`; 0 writes them in the run's own process."""
    num_cpus_per_env_runner: float = Field(default=1, ge=0)
    num_gpus_per_env_runner: float = Field(default=0, ge=0)
    max_num_env_runner_restarts: int = Field(default=100, ge=0)
    """How often a lost env runner is started again, over the whole run, before the run gives up."""
    num_learners: int = Field(default=0, ge=0)
    """Processes that compute the gradients of a whole LM (with all algorithms but sql), each those of some rows; 0
    computes them in the run's own process. With full weights each gradient is as large as the LM; LoRA's are small."""
    num_cpus_per_learner: float = Field(default=1, ge=0)
    """Also, rounded down, the threads that a learner computes with."""
    max_num_learner_restarts: int = Field(default=100, ge=0)
    """How often lost learners are started again, over the whole run, before the run gives up."""
    num_target_replicas: int = Field(default=0, ge=0)
    """Processes that each hold the frozen target and share its work; 0 computes it in the run's own process."""
    num_cpus_per_target_replica: float = Field(default=1, ge=0)
    """Also, rounded down, the threads that a replica computes with."""
    num_gpus_per_target_replica: float = Field(default=0, ge=0)
    """With 0, `target.device: auto` is the CPU."""
    max_num_target_replica_restarts: int = Field(default=100, ge=0)
    target_replica_timeout_s: float = Field(default=600, gt=0)
    """A replica that works longer on a batch (at most 256 requests) is taken for dead and started again."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value in ("local", "auto") or ":" in value:
            return value
        raise ValueError("it must be local, auto, ray://HOST:PORT or HOST:PORT")


def check_ray(ray: RayConfig, algorithm: str, num_envs: int, target: str) -> None:
    """Raises ValueError where the workers and the rest of a configuration do not fit.

    Args:
        ray: the section.
        algorithm: `algorithm.name`.
        num_envs: `env.num_envs`.
        target: `target.name`.
    """
    if ray.num_target_replicas and target.startswith("openai:"):
        raise ValueError(
            f"ray.num_target_replicas is {ray.num_target_replicas}, but '{target}' computes in its own server; set it "
            "to 0, and target.kwargs.concurrency to what the server bears"
        )
    if ray.num_learners and algorithm not in LEARNING_APART:
        raise ValueError(
            f"ray.num_learners is {ray.num_learners}, but '{algorithm}' learns in one process "
            f"({', '.join(LEARNING_APART)} can use several); set it to 0"
        )
    runners = ray.num_env_runners
    if runners and algorithm not in ROLLING_OUT:
        raise ValueError(
            f"ray.num_env_runners is {runners}, but '{algorithm}' writes in one process ({', '.join(ROLLING_OUT)} can "
            "use several); set it to 0"
        )
    if runners and num_envs % runners:
        raise ValueError(
            f"env.num_envs is {num_envs}, which {runners} env runners cannot share equally; take a multiple of "
            "ray.num_env_runners"
        )
