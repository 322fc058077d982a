"""Rollout stores: reading, writing, collecting, importing."""
