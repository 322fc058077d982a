"""What KALM (Pang et al., NeurIPS 2024, arXiv:2404.09248) reports, by domain, to print beside our own numbers."""

from __future__ import annotations

# From what the data hold to what they never showed (section 4); all but the first are novel.
GOAL_SPLITS = ("train", "rephrase", "easy", "hard")
NOVEL_SPLITS = GOAL_SPLITS[1:]

FULL = "full"
ABLATIONS = (FULL, "without explanation", "without dynamics")  # columns of table 1

# Table 1: imagined rollouts that match their goal, in percent, by what the model was grounded in and goal split.
IMAGINED_MATCH = {
    "clevr_robot": {
        ABLATIONS[0]: {"rephrase": 85.0, "easy": 36.0, "hard": 28.0},
        ABLATIONS[1]: {"rephrase": 83.0, "easy": 39.0, "hard": 8.0},
        ABLATIONS[2]: {"rephrase": 83.0, "easy": 42.0, "hard": 15.0},
    }
}

# Tables 4 and 5: implausible transitions of imagined rollouts, in percent, by kind and goal split.
IMPLAUSIBLE = {
    "clevr_robot": {
        "out_of_workbench": {"rephrase": 18.4, "easy": 0.0, "hard": 4.3},
        "beyond_dynamics_limits": {"rephrase": 0.1, "easy": 0.2, "hard": 0.2},
    },
    "metaworld": {
        "floating_object": {"rephrase": 39.5, "easy": 35.5, "hard": 22.3},
        "out_of_workbench": {"rephrase": 18.3, "easy": 10.9, "hard": 64.9},
        "implausible_arm_pose": {"rephrase": 34.0, "easy": 39.2, "hard": 31.2},
        "beyond_dynamics_limits": {"rephrase": 44.6, "easy": 47.9, "hard": 31.1},
    },
}

# Figure 7: explanation accuracy after training, by key words, is above this many percent.
EXPLANATION_ACCURACY = 85.0

# Figure 12: one-step match on easy goals of CLEVR-Robot after training, in percent.
EASY_ACTION_MATCH = 30.0
EASY_STATE_MATCH = 34.0

# Figure 4: CQL on all novel goals of CLEVR-Robot without and with KALM, in percent.
CQL_NOVEL = (15.5, 27.1)
