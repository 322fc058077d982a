"""Models of real steps, learned from real rollouts alone."""
