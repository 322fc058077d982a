"""What KALM (Pang et al., NeurIPS 2024, arXiv:2404.09248) reports for CLEVR-Robot, to print beside our own numbers."""

from __future__ import annotations

# Table 1, full method: imagined rollouts that match their goal, in percent, by goal split.
IMAGINED_MATCH = {"rephrase": 85.0, "easy": 36.0, "hard": 28.0}

# Table 4: transitions of imagined rollouts out of the workbench / beyond the dynamics limits, in percent.
IMPLAUSIBLE = {"rephrase": (18.4, 0.1), "easy": (0.0, 0.2), "hard": (4.3, 0.2)}

# Figure 7: explanation accuracy after training, by key words, is above this many percent.
EXPLANATION_ACCURACY = 85.0

# Figure 12: one-step match on easy goals after training, in percent.
EASY_ACTION_MATCH = 30.0
EASY_STATE_MATCH = 34.0

# Figure 4: CQL on all novel goals without and with KALM, in percent.
CQL_NOVEL = (15.5, 27.1)
