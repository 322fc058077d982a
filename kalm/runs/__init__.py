"""Run folders and what lies in them: checkpoints, loggers."""
