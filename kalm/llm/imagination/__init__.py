"""Imagination (KALM, section 3.2): rollouts for new goals."""
