"""Rollout stores and the labels beside them: reading, writing, collecting, importing."""
