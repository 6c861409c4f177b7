"""Prompt search on the same task, target, reward and ledger as the policies."""
