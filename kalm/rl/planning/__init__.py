"""TEDUO's second step: every goal solved by offline RL on the graph of what was recorded; no simulator anywhere."""
