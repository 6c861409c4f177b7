"""Trained policies at work: `Rewriter` turns a user's text into what the target reads."""

from rlprompt.serving.rewriter import Rewriter, RewriteResult

__all__ = ["RewriteResult", "Rewriter"]
