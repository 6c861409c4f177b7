"""A preference head on a policy's trunk: a linear reward of the hidden state with which the policy has read a text.

Only the head is trained: the policy, and so every logit of its LM, stays as it was, bit for bit. The head says which of
several texts to keep, at the price of reading them.

Reference: Direct Preference Heads, Hadji-Kyriacou and Arandjelovic 2024, arXiv:2405.20053: the contrastive loss,
without label smoothing, on a frozen trunk. There the trunk may learn too.

Shapes: N texts, d hidden.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.policies import PromptPolicy, load_policy
from rlprompt.policies.saving import policy_folder
from rlprompt.preference_pairs import PreferencePair
from rlprompt.rewards.learned import files
from rlprompt.rewards.learned.bradley_terry import PairAccuracy, fit_bradley_terry, model_accuracy
from rlprompt.rewards.learned.language_model import Reading, in_batches, last_hidden
from rlprompt.rewards.learned.pairs import hold_out, what_is_read
from rlprompt.rewards.learned.reading import LearnedReward
from rlprompt.types import FloatArray, Json

DESCRIPTION = "preference-head.json"
WEIGHTS = "preference-head.safetensors"
WHAT = "preference head"
_OWN = ("format_version", "kind", "policy", "reads", "chat", "max_tokens", "files")


class PreferenceHead:
    """r(x) = w . h(x) + b, with h the last hidden state after the context, the text and EOS; 0 is an average text.

    Args:
        policy: whose trunk is read, of the kind "causal-lm"; it must not be trained further.
        weight: w, (d,).
        offset: b.
        reading: how context and text become tokens.
        facts: what is known about it beside that, as JSON values.

    Raises:
        ConfigError: a policy of another kind.
        CheckpointError: the head has another size than the policy's hidden states.
    """

    def __init__(
        self, policy: PromptPolicy, weight: FloatArray, offset: float, reading: Reading, facts: Json | None = None
    ) -> None:
        size = hidden_size(policy)
        if weight.shape != (size,):
            raise CheckpointError(f"a preference head on this policy has {size} weights, got {weight.shape}")
        self.policy = policy
        self.weight = weight
        self.offset = float(offset)
        self.reading = reading
        self.facts = dict(facts or {})

    @property
    def reads(self) -> str:
        """What the contexts are: "input" or "context"."""
        return self.reading.reads

    def score(self, contexts: Sequence[str], texts: Sequence[str]) -> FloatArray:
        """Returns the reward of N texts, each after its own context, (N,)."""
        if not texts:
            return np.zeros(0)
        hidden = hidden_states(self.policy, self.reading, contexts, texts)
        return np.asarray((hidden * self.weight).sum(axis=1) + self.offset)

    def rank(self, context: str, candidates: Sequence[str]) -> list[str]:
        """Returns the candidates for one context, the best one first; equal ones stay in their order."""
        scores = self.score([context] * len(candidates), candidates)
        return [candidates[index] for index in np.argsort(-scores, kind="stable")]

    def save(self, folder: str | Path) -> None:
        """Writes the head beside its saved policy, whose files stay as they are.

        Args:
            folder: the folder of the policy, or a run folder (its best policy).

        Raises:
            ConfigError: no policy is saved there.
            RunError: the folder cannot be written.
        """
        from safetensors.numpy import save

        values = {
            "kind": "preference-head",
            "policy": fingerprint(self.policy),
            "reads": self.reading.reads,
            "chat": self.reading.chat,
            "max_tokens": self.reading.max_tokens,
            **self.facts,
        }
        tensors = {"weight": self.weight, "offset": np.array([self.offset])}
        files.save_folder(policy_folder(Path(folder)), DESCRIPTION, values, {WEIGHTS: save(tensors)})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        policy: PromptPolicy | None = None,
        *,
        model: str | None = None,
        device: str = "auto",
    ) -> PreferenceHead:
        """Reads what `save` wrote, and the policy beside it.

        Args:
            folder: the folder of the policy, or a run folder.
            policy: the loaded policy of that folder, where there is one already.
            model: its frozen LM, where it is not found under the saved name.
            device: where a policy that is loaded here works.

        Raises:
            ConfigError: no policy or no head is there.
            CheckpointError: a file is damaged, or the head was trained on other weights.
        """
        place = policy_folder(Path(folder))
        values, contents = files.read_folder(place, DESCRIPTION, WHAT)
        where = str(place / DESCRIPTION)
        tensors = files.tensors_of(contents.get(WEIGHTS, b""), str(place / WEIGHTS))
        if set(tensors) != {"weight", "offset"} or tensors["weight"].ndim != 1 or tensors["offset"].shape != (1,):
            raise CheckpointError(f"{place / WEIGHTS} holds no preference head; train it again")
        reading = Reading(
            reads=files.field(values, "reads", str, where),
            chat=files.field(values, "chat", bool, where),
            max_tokens=files.field(values, "max_tokens", int, where),
        )
        if policy is None:
            from rlprompt.models import pick_device

            policy = load_policy(place, model=model).to(pick_device(device))
        if values.get("policy") != fingerprint(policy):
            raise CheckpointError(f"{where} was trained on other weights than those of this policy; train it again")
        facts = {key: value for key, value in values.items() if key not in _OWN}
        return cls(policy, tensors["weight"].double().numpy(), float(tensors["offset"][0]), reading, facts)


@dataclass(frozen=True)
class PreferenceHeadTraining:
    """A trained head and how good it is."""

    head: PreferenceHead
    held_out: PairAccuracy
    num_pairs: int
    """That it learnt from."""


def train_preference_head(
    policy: PromptPolicy,
    pairs: Sequence[PreferencePair],
    folder: str | Path | None = None,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    regularisation: float = 1.0,
    chat: bool = True,
    max_tokens: int = 512,
) -> PreferenceHeadTraining:
    """Fits a head to preference pairs; the policy is read and not changed.

    The hidden states are computed once, and the loss -log sigmoid(r(chosen) - r(rejected)) is convex in the head: there
    are no steps, and no seed but that of the held-out pairs.

    Args:
        policy: of the kind "causal-lm".
        pairs: that all read an input, or all a context; their weights count, their margins do not.
        folder: where the policy is saved; the head is written beside it. None keeps it in memory.
        held_out: share of the contexts whose pairs are kept for the accuracy.
        seed: of that draw.
        regularisation: C, above 0, for standardised hidden states: larger fits closer.
        chat: whether an input goes through the LM's chat template, where it has one.
        max_tokens: of context and text together; a longer row loses its beginning.

    Raises:
        ConfigError: a policy of another kind, or pairs or an argument that cannot be used.
    """
    size = hidden_size(policy)
    if max_tokens < 8:
        raise ConfigError(f"max_tokens must be at least 8, got {max_tokens}")
    most = _network(policy).most_positions
    reading = Reading(what_is_read(pairs), chat, max_tokens if most is None else min(max_tokens, most))
    learnt, rest = hold_out(pairs, held_out, seed)
    contexts = [pair.reading for pair in learnt]
    chosen = hidden_states(policy, reading, contexts, [pair.chosen for pair in learnt])
    rejected = hidden_states(policy, reading, contexts, [pair.rejected for pair in learnt])
    both = np.concatenate([chosen, rejected])
    mean, spread = both.mean(axis=0), both.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    weights = np.array([pair.weight for pair in learnt])
    weight = fit_bradley_terry((chosen - rejected) / scale, weights, regularisation) / scale
    head = PreferenceHead(policy, weight.reshape(size), -float(mean @ weight), reading)
    accuracy = model_accuracy(head, rest)
    head.facts = {
        "regularisation": regularisation,
        "seed": seed,
        "pairs": len(learnt),
        "held_out": accuracy.to_json(),
    }
    if folder is not None:
        head.save(folder)
    return PreferenceHeadTraining(head, accuracy, len(learnt))


@torch.no_grad()
def hidden_states(policy: PromptPolicy, reading: Reading, contexts: Sequence[str], texts: Sequence[str]) -> FloatArray:
    """Returns the policy's last hidden state after each context, text and EOS, (N, d); those of the trained policy."""
    network = _network(policy)
    network.ready(dropout=False)
    rows = [reading.ids(policy.tokenizer, *pair) for pair in zip(contexts, texts, strict=True)]

    def compute(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return last_hidden(network.lm, ids, mask)

    return in_batches(rows, compute, network.device, reading.max_tokens)


def hidden_size(policy: PromptPolicy) -> int:
    """Returns d.

    Raises:
        ConfigError: the policy is of another kind than "causal-lm".
    """
    return int(_network(policy).lm.config.get_text_config().hidden_size)


def fingerprint(policy: PromptPolicy) -> str:
    """Returns what a head was trained on: the SHA-256 of what was trained of the LM; `load_policy` checks the rest."""
    digest = hashlib.sha256()
    for name, value in sorted(policy.trainable_state().items()):
        if name.startswith("lm."):  # the value head reads the same states and does not change them
            digest.update(name.encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _network(policy: PromptPolicy) -> Any:
    if policy.kind != "causal-lm":
        raise ConfigError(f"a preference head needs a policy of kind causal-lm, got {policy.kind}")
    return policy.network  # type: ignore[attr-defined]  # of the kind


class PreferenceHeadReward(LearnedReward):
    """The reward of a text under the preference head beside a saved policy; higher is better, 0 is an average text.

    Args:
        model: the folder of the policy, or a run folder.
        of: "prompt" (what the policy wrote) or "output" (what the target answered).
        base: the policy's LM, where it is not found under the saved name.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ConfigError: no policy or no head is there.
        CheckpointError: a damaged one, or one of other weights.
    """

    def __init__(self, model: str, of: str = "prompt", *, base: str | None = None, device: str = "auto") -> None:
        loaded = PreferenceHead.load(Path(model).expanduser(), model=base, device=device)
        super().__init__("preference-head", loaded, of, loaded.reads)
