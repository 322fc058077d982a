"""How the algorithms are trained: batches, updates, schedules, seeds side by side, evaluation."""
