"""kalm: offline reinforcement learning from language-model rollouts."""

__version__ = "0.1.0"
