"""PPO, soft Q-learning and REINFORCE on RLlib's new API stack.

`engine.fit` is the entry point. RLlib samples episodes through the vector env, `batches` turns complete episodes into
(B, T) token matrices, `learner` minimises the losses of `rlprompt.algorithms.losses`, `module` wraps a prompt policy.
`chunks` says how many rows a whole LM scores at once, `nlpo` narrows what may be written.
"""
