"""Names -> "module:attribute", for everything that a configuration names.

Built-in names are in the tables below; other packages add theirs through the entry-point groups
`rlprompt.rewards`, `rlprompt.features` (of texts, for reward models), `rlprompt.aesthetics` and `rlprompt.embedders`
(of images), `rlprompt.stabilisers`, `rlprompt.targets`, `rlprompt.policies`, `rlprompt.algorithms`, `rlprompt.roles`
(of agents that compose one prompt) and `rlprompt.dialogues` (partners of the target).
A name with a colon, `my_module:my_function`, is code of the user: it is imported only where the caller allows
the module (`allow_modules`), and never from a run folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlprompt.errors import ConfigError, UnknownNameError

BUILT_IN: dict[str, dict[str, str]] = {
    "rewards": {
        "accuracy": "rlprompt.rewards.classification:Accuracy",
        "gap": "rlprompt.rewards.classification:ProbabilityGap",
        "log-probability": "rlprompt.rewards.classification:LogProbability",
        "cross-entropy": "rlprompt.rewards.classification:CrossEntropy",
        "exact-match": "rlprompt.rewards.generation:ExactMatch",
        "token-f1": "rlprompt.rewards.generation:TokenF1",
        "length": "rlprompt.rewards.generation:Length",
        "fluency": "rlprompt.rewards.fluency:Fluency",
        "log-likelihood-f1": "rlprompt.rewards.classification:LikelihoodF1",
        "rouge": "rlprompt.rewards.overlap:Rouge",
        "bleu": "rlprompt.rewards.overlap:Bleu",
        "chrf": "rlprompt.rewards.overlap:Chrf",
        "length-difference": "rlprompt.rewards.overlap:LengthDifference",
        "length-rule": "rlprompt.rewards.length:LengthRule",
        "answer": "rlprompt.rewards.answers:Answer",
        "similarity": "rlprompt.rewards.similarity:Similarity",
        "attribute": "rlprompt.rewards.attribute:Attribute",
        "gap-over-original": "rlprompt.rewards.gap:GapOverOriginal",
        "judge": "rlprompt.rewards.judges.judge:LLMJudge",
        "ensemble": "rlprompt.rewards.judges.ensemble:Ensemble",
        "checklist": "rlprompt.rewards.judges.checklist:Checklist",
        "hybrid": "rlprompt.rewards.judges.hybrid:Hybrid",
        "reward-model": "rlprompt.rewards.learned.language_model:LanguageModelReward",
        "feature-model": "rlprompt.rewards.learned.feature_model:FeatureModelReward",
        "success-model": "rlprompt.rewards.learned.success_model:SuccessModelReward",
        "dialogue": "rlprompt.rewards.dialogue:DialogueScore",
        "preference-head": "rlprompt.algorithms.preference_head:PreferenceHeadReward",
        "promptist": "rlprompt.rewards.promptist:Promptist",
    },
    "aesthetics": {
        "contrast": "rlprompt.rewards.images:contrast",
    },
    "embedders": {
        "scene": "rlprompt.rewards.images:SceneEmbedding",
    },
    "features": {
        "length": "rlprompt.rewards.learned.features:length",
        "length-ratio": "rlprompt.rewards.learned.features:length_ratio",
        "sentences": "rlprompt.rewards.learned.features:sentences",
        "line-breaks": "rlprompt.rewards.learned.features:line_breaks",
        "overlap": "rlprompt.rewards.learned.features:overlap",
        "coverage": "rlprompt.rewards.learned.features:coverage",
        "kept-numbers": "rlprompt.rewards.learned.features:kept_numbers",
        "new-numbers": "rlprompt.rewards.learned.features:new_numbers",
        "type-token-ratio": "rlprompt.rewards.learned.features:type_token_ratio",
        "repeated-bigrams": "rlprompt.rewards.learned.features:repeated_bigrams",
        "question-mark": "rlprompt.rewards.learned.features:question_mark",
        "upper-case": "rlprompt.rewards.learned.features:upper_case",
        "similarity": "rlprompt.rewards.learned.features:TextSimilarity",
    },
    "stabilisers": {
        "z-score": "rlprompt.rewards.stabilisers:ZScore",
        "running-normalisation": "rlprompt.rewards.stabilisers:RunningNormalisation",
        "clip": "rlprompt.rewards.stabilisers:Clip",
        "linear-range": "rlprompt.rewards.stabilisers:LinearRange",
        "leave-one-out": "rlprompt.rewards.stabilisers:LeaveOneOut",
    },
    "targets": {
        "transformers": "rlprompt.targets.transformers:TransformersTarget",
        "openai": "rlprompt.targets.openai:OpenAITarget",
        "planted": "rlprompt.targets.planted:PlantedTarget",
        "renderer": "rlprompt.targets.renderer:RendererTarget",
    },
    "policies": {
        "lm-adaptor": "rlprompt.policies.lm_adaptor:LMAdaptorPolicy",
        "categorical": "rlprompt.policies.categorical:CategoricalPolicy",
        "causal-lm": "rlprompt.policies.causal_lm:CausalLMPolicy",
        "seq2seq-lm": "rlprompt.policies.seq2seq_lm:Seq2SeqLMPolicy",
    },
    "algorithms": {
        "ppo": "rlprompt.algorithms.rllib.engine:fit",
        "sql": "rlprompt.algorithms.rllib.engine:fit",
        "reinforce": "rlprompt.algorithms.rllib.engine:fit",
        "grpo": "rlprompt.algorithms.trl.grpo:fit",
        "rloo": "rlprompt.algorithms.trl.rloo:fit",
        "sft": "rlprompt.algorithms.trl.sft:fit",
        "dpo": "rlprompt.algorithms.trl.dpo:fit",
        "rrhf": "rlprompt.algorithms.trl.rrhf:fit",
        "online-dpo": "rlprompt.algorithms.trl.online_dpo:fit",
        "expert-iteration": "rlprompt.algorithms.trl.expert_iteration:fit",
        "random": "rlprompt.search.random:fit",
        "greedy": "rlprompt.search.random:greedy",
        "evolve": "rlprompt.search.evolve:fit",
    },
    "roles": {
        "role-line": "rlprompt.roles:ROLE_LINE",
        "instruction": "rlprompt.roles:INSTRUCTION",
        "constraints": "rlprompt.roles:CONSTRAINTS",
        "hint": "rlprompt.roles:HINT",
    },
    "dialogues": {
        "negotiation": "rlprompt.dialogues.negotiation:Negotiation",
        "workflow": "rlprompt.dialogues.workflow:Workflow",
    },
}


SINGULAR = {
    "rewards": "reward",
    "aesthetics": "aesthetic",
    "embedders": "embedder",
    "features": "feature",
    "stabilisers": "stabiliser",
    "targets": "target",
    "policies": "policy",
    "algorithms": "algorithm",
    "roles": "role",
    "dialogues": "dialogue",
}


def names(group: str) -> dict[str, str]:
    """Returns every name of a group with its "module:attribute"; entry points do not replace built-in names."""
    found = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=f"rlprompt.{group}")}
    return {**found, **BUILT_IN[group]}


def resolve(group: str, name: str, *, allow_modules: Sequence[str] = (), search_path: str | Path | None = None) -> Any:
    """Imports what a name stands for.

    Args:
        group: "rewards", "features", "aesthetics", "embedders", "stabilisers", "targets", "policies", "algorithms",
            "roles" or "dialogues".
        name: a registered name, or `module:attribute`.
        allow_modules: modules (with their submodules) that `module:attribute` may import.
        search_path: folder of the user's configuration; modules that lie in it are allowed and importable.

    Raises:
        UnknownNameError: nothing is registered under the name.
        ConfigError: the module is not allowed, cannot be imported or lacks the attribute.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        _check_allowed(name, module, allow_modules, search_path)
        with _importable(search_path):
            _forget_other_file(module, search_path)
            return _load(group, name, module, attribute)
    table = names(group)
    if name not in table:
        raise UnknownNameError(SINGULAR[group], name, table, "; or write it as my_module:my_name")
    module, _, attribute = table[name].partition(":")
    return _load(group, name, module, attribute)


def source_of(module: str, search_path: str | Path | None = None) -> Path:
    """Returns the file of a module's top level, or its folder where that is a package.

    Args:
        module: for example `my_package.my_module`.
        search_path: folder of the user's configuration; it goes before other places.

    Raises:
        ConfigError: there is no such module, or it has no file of its own.
    """
    top = module.partition(".")[0]
    with _importable(search_path):
        _forget_other_file(top, search_path)
        found = importlib.util.find_spec(top)
    origin = None if found is None else found.origin
    if origin is None or not Path(origin).is_file():
        raise ConfigError(f"module '{top}' has no file that could be sent to workers; put {top}.py beside the config")
    file = Path(origin).resolve()
    return file.parent if file.name == "__init__.py" else file


def _check_allowed(name: str, module: str, allow_modules: Sequence[str], search_path: str | Path | None) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"'{name}' is not of the form my_module:my_name")
    for allowed in allow_modules:
        if module == allowed or module.startswith(allowed + "."):
            return
    if search_path is not None:
        base = Path(search_path).joinpath(*module.split("."))
        if base.with_suffix(".py").is_file() or (base / "__init__.py").is_file():
            return
    raise ConfigError(
        f"'{name}' names code outside the configuration's folder; put {module.split('.')[0]}.py beside the "
        f"configuration, or allow it with --allow-module {module}"
    )


@contextmanager
def _importable(search_path: str | Path | None) -> Iterator[None]:
    if search_path is None:
        yield
        return
    folder = str(Path(search_path).resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _forget_other_file(module: str, search_path: str | Path | None) -> None:
    """Drops a module of the same name that came from another folder, else its code would be used silently."""
    known = sys.modules.get(module)
    if known is None or search_path is None or not getattr(known, "__file__", None):
        return
    base = Path(search_path).resolve().joinpath(*module.split("."))
    beside = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    if beside and Path(str(known.__file__)).resolve() not in beside:
        del sys.modules[module]
        importlib.invalidate_caches()


def _load(group: str, name: str, module: str, attribute: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{group.removesuffix('s')} '{name}': cannot import {module}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{group.removesuffix('s')} '{name}': {module} has no '{attribute}'")
        found = getattr(found, part)
    return found
