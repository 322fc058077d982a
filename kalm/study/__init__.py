"""Studies: chains of stages, run in order."""
