"""Rollouts on disk and the way from there to batches: stores, filters, Lightning data modules, imports."""
