"""Grounding (KALM, section 3.1): states and actions in and out of a language model, its tasks and losses."""
