"""From stores to batches: selections of rollouts, ways to choose in them, minibatches, and a data module a use."""
