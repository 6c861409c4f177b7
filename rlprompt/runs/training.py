"""`train`: one training or search run, from its configuration to its best prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprompt.config import RunConfig, dump_config
from rlprompt.errors import BudgetExceededError, ConfigError, RLPromptError, TooManyFailuresError
from rlprompt.runs.checkpoints import newest_valid
from rlprompt.runs.environment import describe_environment, record_session
from rlprompt.runs.folder import (
    RunFolder,
    check_writable,
    new_run_folder,
    only_writer,
    read_json,
    runs_folder,
    write_bytes,
    write_json,
    writing_errors,
)
from rlprompt.runs.limits import NO_CALLS, check_first_iteration
from rlprompt.runs.mirror import Mirror, check_mirror, restore
from rlprompt.runs.monitor import check_monitor
from rlprompt.runs.progress import ProgressDisplay
from rlprompt.runs.result import RunResult, load_run
from rlprompt.runs.resume import check_same_config, config_hash
from rlprompt.runs.run import Run
from rlprompt.runs.signals import StopSignals
from rlprompt.runs.stages import Stage, build_stages, fit_stages, total_iterations
from rlprompt.runs.tracking import Callback, TensorBoard
from rlprompt.runs.trial import Trial
from rlprompt.shipping import shipment
from rlprompt.types import SharedBudget, Target

if TYPE_CHECKING:
    from rlprompt.policies import PromptPolicy, PromptTeam
    from rlprompt.scoring import Scorer

logger = logging.getLogger(__name__)

_CHOOSES_ON_DEV = ("done", "budget", "wall", "stop-file")
_FINAL = ("done", "budget", "wall")


def train(
    config: RunConfig,
    *,
    resume: str | Path | None = None,
    progress: bool = True,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
    trial: Trial | None = None,
) -> RunResult:
    """Trains a policy, or searches, as the configuration says, and chooses the best prompt on dev.

    In the main thread, Ctrl-C and SIGTERM stop the run after the iteration in progress, a second one at once; both
    save the last completed iteration, and leave the choice on dev to a resumed run.

    Args:
        config: the resolved configuration.
        resume: a run folder to go on with, from its newest whole checkpoint; or the URL of its copy (`run.mirror`),
            which is fetched into the folder of runs first.
        progress: whether to show progress on standard error.
        allow_modules: modules that names of the form my_module:my_name may come from.
        search_path: the folder of the user's configuration; modules beside it are allowed too.
        trial: what a sweep says where and how; `resume` and `run.dir` mean nothing then. Whether there is something
            left to do is the sweep's to know.

    Returns:
        The result, with the exit code of the command line.

    Raises:
        ConfigError: the configuration cannot be used, or differs from that of the resumed run.
        RunError: the run folder cannot be written; CheckpointError: no checkpoint of it is whole.
        TooManyFailuresError: the share of failed samples passed `run.max_failed_fraction`; everything is saved.
    """
    if isinstance(resume, str) and "://" in resume:
        resume = restore(resume, runs_folder(config))
    folder = trial.folder if trial is not None else None if resume is None else RunFolder(Path(resume))
    parent = check_writable(config) if folder is None else folder.root.parent
    if trial is None and folder is not None:
        finished = _already_finished(config, folder.root)
        if finished is not None:
            return finished
    if config.run.mirror is not None:
        check_mirror(config.run.mirror)
    has_begun = folder is not None and folder.config.is_file()
    if trial is not None and has_begun:
        check_same_config(load_run(trial.folder.root).config, config)
    shared = None if trial is None else trial.shared
    with ExitStack() as stack:
        target = stack.enter_context(_replicas(config, search_path))
        stages, scorer, policy = _build(config, allow_modules, search_path, folder, target, shared)
        if folder is None or not has_begun:
            folder = _begin(folder, parent, config, scorer)
        stack.callback(scorer.ledger.give_back)
        stack.enter_context(only_writer(folder.root))
        signals = stack.enter_context(StopSignals() if trial is None else trial.signals)
        run = Run(folder, config, scorer, policy, signals=signals, callbacks=_callbacks(config, folder, progress))
        if has_begun:
            _restore(run)
        _describe(run, scorer)
        run.start()
        stack.callback(run.close)
        return _work(run, stages, signals)


@contextmanager
def _replicas(config: RunConfig, search_path: str | Path | None) -> Iterator[Target | None]:
    """The target in processes of its own; None where this process computes or asks it."""
    if not config.ray.num_target_replicas:
        yield None
        return
    from rlprompt.ray_session import start_ray
    from rlprompt.targets import pooled_target

    sent = shipment(config, search_path=search_path)
    start_ray(config.ray, () if sent is None else sent.files)
    target = pooled_target(config.target, config.ray)
    pool: Any = getattr(target, "target", target)  # it may be behind a cache
    try:
        yield target
    finally:
        pool.close()


def _begin(folder: RunFolder | None, parent: Path, config: RunConfig, scorer: Scorer) -> RunFolder:
    """Makes the run folder: the one that a sweep wants, or a new one in `parent`."""
    if folder is None:
        folder = new_run_folder(parent, config.seed, config_hash(config))
    else:
        with writing_errors(folder.root):
            folder.root.mkdir(parents=True, exist_ok=True)
    if scorer.rewards.judge_calls != NO_CALLS:
        write_json(folder.check, scorer.ledger.state_dict())
    return folder


def _build(
    config: RunConfig,
    allow_modules: Sequence[str],
    search_path: str | Path | None,
    known: RunFolder | None,
    target: Target | None,
    shared: SharedBudget | None,
) -> tuple[list[Stage], Scorer, PromptPolicy | PromptTeam]:
    """Builds the parts of a run, stages, scorer and policy, and checks that they can work together."""
    from rlprompt.envs.contexts import MetaSettings
    from rlprompt.policies import build_policy
    from rlprompt.scoring import build_scorer

    stages = build_stages(config, allow_modules=allow_modules, search_path=search_path)
    if config.env.kind not in ("token-prompt", "multi"):
        MetaSettings.from_config(config.env).load()  # a wrong meta-prompt is told of before there is a folder
    code: dict[str, Any] = {
        "allow_modules": tuple(allow_modules),
        "search_path": None if search_path is None else Path(search_path),
    }
    scorer = build_scorer(config, **code, target=target, shared=shared)
    check_monitor(config.monitor, scorer.rewards)
    _check_rewards(scorer, known)
    spent = scorer.ledger.snapshot()["used"]["calls"]
    check_first_iteration(config, scorer.task, scorer.rewards.judge_calls, spent)
    if config.env.kind == "multi":
        from rlprompt.envs.configured import configured_game
        from rlprompt.policies import configured_team

        configured_game(config, scorer.spec)  # what does not fit is told of before there is a folder
        return stages, scorer, configured_team(config, **code)
    policy = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed, **code)
    return stages, scorer, policy


def _check_rewards(scorer: Scorer, folder: RunFolder | None) -> None:
    """Tries the rewards. What judges said to it before there was the folder, they are not asked, or charged, again."""
    from rlprompt.rewards import check_rewards

    known = folder is not None and folder.check.exists()
    if folder is not None and known:
        scorer.ledger.load_state_dict(read_json(folder.check, "what the check of the rewards spent"))
    try:
        check_rewards(scorer.rewards, scorer.task, spending=not known)
    except BudgetExceededError as error:
        raise ConfigError(f"the budget does not hold for the check of the rewards: {error}") from error


def _already_finished(config: RunConfig, folder: Path) -> RunResult | None:
    """Checks the configuration; returns the result of a run that has nothing left to do under it."""
    saved = load_run(folder)
    check_same_config(saved.config, config)
    result = saved.result
    same_limits = (saved.config.budget, saved.config.algorithm.iterations) == (
        config.budget,
        config.algorithm.iterations,
    )
    if result is not None and result.stop_reason in _FINAL and same_limits:
        logger.warning("%s has ended already (%s); nothing to resume", folder, result.stop_reason)
        return result
    return None


def _callbacks(config: RunConfig, folder: RunFolder, progress: bool) -> list[Callback]:
    callbacks: list[Callback] = []
    if progress:
        callbacks.append(ProgressDisplay(total_iterations(config)))
    if config.run.tensorboard:
        callbacks.append(TensorBoard(folder.tensorboard))
    if config.run.mirror is not None:  # the last one: it copies what the others write
        callbacks.append(Mirror(config.run.mirror, folder))
    return callbacks


def _restore(run: Run) -> None:
    run.files.remove_temporary()
    found = newest_valid(run.files)
    if found is None:
        logger.warning("%s has no checkpoint yet; it starts again from its first iteration", run.folder)
    run.restore(found)


def _describe(run: Run, scorer: Scorer) -> None:
    write_bytes(run.files.config, dump_config(run.config).encode())
    record_session(run.files.environment, describe_environment(scorer.target))


def _work(run: Run, stages: Sequence[Stage], signals: StopSignals) -> RunResult:
    """Lets the algorithms work and brings the run to an end, whatever the end is."""
    try:
        reason = _fit(run, stages, signals)
        try:
            run.save()
            if reason in _CHOOSES_ON_DEV:
                run.choose()
        except KeyboardInterrupt:
            reason = signals.reason or "interrupt"
        run.check_failures()
    except RLPromptError as error:
        run.save()
        run.finish("failures" if isinstance(error, TooManyFailuresError) else "error")
        raise
    finally:
        run.save()  # after a bug, too, what is complete is kept; does nothing where it was saved before
    return run.finish(reason)


def _fit(run: Run, stages: Sequence[Stage], signals: StopSignals) -> str:
    try:
        fit_stages(run, stages)
    except BudgetExceededError as error:
        logger.info("stopped by the budget: %s", error)
        return "budget"
    except KeyboardInterrupt:
        return signals.reason or "interrupt"
    return run.stopped_by or "done"
