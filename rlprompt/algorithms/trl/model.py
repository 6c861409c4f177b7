"""A prompt policy as TRL sees it: a transformers model that answers the calls of TRL's trainers.

TRL asks a model for the log-probabilities of given tokens (`fused_lm_head=True`). They are answered by the policy's own
`evaluate` under the mask that the prompts are written under: a ratio, an entropy and a KL are of the distribution that
was sampled. The policy itself is not changed, whatever its kind, and TRL adds no adapter to it.

Shapes: B rows, L length of a row (context and completion), C context, T completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rlprompt.algorithms.trl.token_scores import Rows, ScoredHere, TokenScores, cut, score, score_all
from rlprompt.masks import NOT_WRITTEN, step_mask
from rlprompt.policies import PromptPolicy
from rlprompt.policies.sampling import FORBIDDEN
from rlprompt.types import BoolArray

if TYPE_CHECKING:
    from rlprompt.algorithms.trl.remote_models import RemoteModels

IGNORED = -100
"""The label of a position that is not scored, as everywhere in transformers."""


class PolicyModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # untyped there
    """The policy in training, or its reference.

    Only what is trained is registered: a trainer's optimiser, weights and gradient norm never see frozen tensors.

    Args:
        policy: whose distribution is asked for.
        allowed: (V,) which tokens may ever be written.
        eos_id: the token that ends a prompt; None for prompts of fixed length.
        no_repeat: whether a prompt may hold a token only once.
        reference: answers for the frozen reference instead of the policy in training, without gradient.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(
        self,
        policy: PromptPolicy,
        *,
        allowed: BoolArray,
        eos_id: int | None,
        no_repeat: bool,
        reference: bool = False,
    ) -> None:
        ids = {"eos_token_id": policy.tokenizer.eos_token_id, "pad_token_id": pad_id(policy.tokenizer)}
        config: Any = PretrainedConfig
        super().__init__(config(vocab_size=policy.vocabulary_size, **ids))
        self.generation_config = GenerationConfig(**ids)  # type: ignore[no-untyped-call]  # untyped there
        self.allowed = allowed
        self.eos_id = eos_id
        self.no_repeat = no_repeat
        self.reference = reference
        self.entropy_gradient = False
        """Whether `entropy` has a gradient; without one it costs no memory."""
        self.learners: RemoteModels | None = None
        """Processes that compute in the place of this one."""
        self._policy = [policy]  # in a list, so that torch does not register the frozen LM
        if not reference:
            self.trainable = policy.trainable

    @property
    def policy(self) -> PromptPolicy:
        """The policy that is asked."""
        return self._policy[0]

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return self.policy.device

    def train(self, mode: bool = True) -> PolicyModel:
        """Switches this module alone: what is scored must be the distribution that wrote, so nothing drops out."""
        super().train(mode)
        self.policy.eval()
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, fused_lm_head: bool = True, **_: Any
    ) -> SimpleNamespace:
        """Scores the labelled tokens of each row, given what comes before them.

        Args:
            input_ids: (B, L), context and completion; padding wherever `attention_mask` is 0.
            attention_mask: (B, L), 1 at what is read.
            labels: (B, L), the token where it is scored, else -100. A row's scored tokens are its last ones.
            fused_lm_head: always true; TRL passes it.

        Returns:
            `log_probs`, `entropy`, `is_top1` and `label_mask`, (B, L - 1), of the token that follows each position, 0
            where it is not scored; and `loss`, the mean negative log-probability.
        """
        scored = (labels != IGNORED) & (attention_mask != 0)
        rows, columns = scored.nonzero(as_tuple=True)
        context = packed(input_ids, (attention_mask != 0) & ~scored)
        found = self.token_scores(context, packed(input_ids, scored))
        shape = (len(input_ids), input_ids.shape[1] - 1)
        where = (rows, columns - 1)

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(shape).index_put(where, values)

        return SimpleNamespace(
            log_probs=spread(found.log_probs),
            entropy=spread(found.entropy),
            is_top1=spread(found.is_top1),
            mean_logits=spread(torch.zeros_like(found.log_probs)),  # TRL's DPO notes it, and nobody reads it
            label_mask=scored[:, 1:],
            loss=-found.log_probs.sum() / max(len(rows), 1),
            aux_loss=None,
        )

    def floating_point_ops(self, *_: Any, **__: Any) -> int:
        """TRL's batches do not tell, and nobody reads it."""
        return 0

    @torch.no_grad()
    def prompt_logp(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the log-probability of whole prompts, (B,); context (B, C) and tokens (B, T), -1 behind the end."""
        found = self.token_scores(context, tokens).log_probs
        return found.new_zeros(tokens.shape).masked_scatter(tokens != NOT_WRITTEN, found).sum(dim=1)

    def token_scores(self, context: Tensor, tokens: Tensor) -> TokenScores:
        """Scores the written tokens (B, T), -1 behind the end, after their contexts (B, C), row by row."""
        parameters = [] if self.reference else list(self.trainable.parameters())
        gradient = bool(parameters) and torch.is_grad_enabled()
        chunks = [Rows(context, tokens)]
        if self.device.type == "cpu":  # a GPU is as fast as its batches are large, and has no learners beside it
            chunks = cut(context, tokens, self.policy.vocabulary_size, gradient=gradient)
        return score_all(self if self.learners is None else self.learners.scorer(self), chunks, parameters)

    def start(self, chunks: Sequence[Rows], *, gradient: bool) -> ScoredHere:
        """Scores chunks here; with `gradient` they can be differentiated afterwards."""
        with torch.set_grad_enabled(gradient):
            found = [score(rows, self.log_softmax, entropy_gradient=self.entropy_gradient) for rows in chunks]
        return ScoredHere(found, list(self.trainable.parameters()) if gradient else [])

    def log_softmax(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the log-probabilities of all tokens in each place (B, T, V), under the masks."""
        if self.reference:
            with torch.no_grad():
                logits = self.policy.reference_logits(context, tokens)
        else:
            logits, _ = self.policy.evaluate(context, tokens)
        allowed = torch.from_numpy(self.allowed_tokens(tokens.cpu().numpy())).to(logits.device)
        return torch.log_softmax(logits.masked_fill(~allowed, FORBIDDEN), dim=-1)

    def allowed_tokens(self, tokens: np.ndarray) -> BoolArray:
        """Returns which token could be written in each place of given completions (B, T), as (B, T or 1, V).

        Without `no_repeat` only the first place differs from the others: a prompt never begins with EOS.
        """
        if self.no_repeat:
            steps = [
                step_mask(self.allowed, tokens[:, :step], eos_id=self.eos_id, no_repeat=True)
                for step in range(tokens.shape[1])
            ]
            return np.stack(steps, axis=1)
        if self.eos_id is None:
            return self.allowed[None, None].copy()
        places = np.repeat(self.allowed[None], max(tokens.shape[1], 1), axis=0)
        places[0, self.eos_id] = False
        return places[None]


def packed(ids: Tensor, kept: Tensor) -> Tensor:
    """Returns the kept ids of each row side by side, -1 behind them, (B, most kept of a row).

    >>> packed(torch.tensor([[7, 8, 9], [7, 8, 9]]), torch.tensor([[False, True, True], [True, False, False]])).tolist()
    [[8, 9], [7, -1]]
    """
    count = kept.sum(dim=1)
    result = ids.new_full((len(ids), int(count.max())), NOT_WRITTEN)
    result[torch.arange(result.shape[1], device=ids.device) < count[:, None]] = ids[kept]
    return result


def pad_id(tokenizer: Any) -> int:
    """Returns an id to pad with; what is padded is masked, so any id will do."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return 0


class TokenizerView(PreTrainedTokenizerBase):
    """What TRL asks of a tokenizer. It would set a padding token on the policy's own, which others share.

    Args:
        tokenizer: the policy's tokenizer; need not be one of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer
        self.padding_side, self.truncation_side = "right", "right"
        self.name_or_path = "policy"
        self.chat_template = None
        self.init_kwargs: dict[str, Any] = {}

    pad_token = eos_token = "<end>"
    bos_token_id = None

    @property
    def pad_token_id(self) -> int:
        """The id that fills rows up."""
        return pad_id(self.inner)

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a prompt."""
        found: int | None = self.inner.eos_token_id
        return found

    def __getattr__(self, name: str) -> Any:
        """Nothing is looked up elsewhere: transformers would search tables that a view does not have."""
        raise AttributeError(f"a view of the policy's tokenizer has no '{name}'")

    def __len__(self) -> int:
        """Returns the size of the vocabulary."""
        return len(self.inner)

    def __repr__(self) -> str:
        """Names what is viewed."""
        return f"TokenizerView({self.inner!r})"

    def batch_decode(  # type: ignore[override]  # TRL calls it so
        self, sequences: Any, **_: Any
    ) -> list[str]:
        """Returns empty texts: the prompts are decoded by `rlprompt.masks.decode`, as everywhere."""
        return [""] * len(sequences)
