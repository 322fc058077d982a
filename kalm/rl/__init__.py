"""Offline-RL algorithms: one file each, one class each, on the base in ``base.py``."""
