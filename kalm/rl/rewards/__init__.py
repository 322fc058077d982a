"""Proxy rewards: networks that learned a judge's labels and tell whether a state meets a goal (TEDUO, step 1)."""
