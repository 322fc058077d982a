"""What the papers report, by domain, to print beside our own numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# --- KALM (Pang et al., NeurIPS 2024, arXiv:2404.09248) ---
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

# --- TEDUO (Pouplin et al., ICML 2025, arXiv:2412.06877) ---


@dataclass(frozen=True)
class Cell:
    """What TEDUO reports of a method on grids and goals from training or from test; None where it does not say.

    Its test goals come in unseen words only.

    Attributes:
        success: Percent of episodes (table 1).
        length: Steps, the limit where an episode failed.
        invalid: Percent of actions that change nothing.
        of_kinds: Percent of episodes of pick up, go to, open, put next to (table B.6).
    """

    success: float
    length: float | None
    invalid: float | None
    of_kinds: tuple[float, float, float, float] | None = None


# Tables 1 and B.6, and for steps 1 and 2 alone tables 2 and B.3; limit 500 steps. By domain, method and goal split.
BEHAVIOUR: dict[str, dict[str, dict[str, Cell]]] = {
    "babyai": {
        "TEDUO, Llama-3-8B": {
            "train": Cell(65, 203, 21, (46, 85, 100, 0)),
            "new_grids": Cell(53, 257, 27, (39, 65, 100, 0)),
            "new_words": Cell(55, 241, 22, (20, 87, 83, 0)),
            "new_grids_and_words": Cell(45, 286, 31, (26, 70, 61, 0)),
        },
        "steps 1 and 2, then BabyAI's imitation network": {
            "train": Cell(69, 248, 17, (46, 92, 100, 7)),
            "new_grids": Cell(45, 344, 19, (30, 58, 100, 6)),
            "new_words": Cell(15, 453, 44, (5, 44, 4, 0)),
            "new_grids_and_words": Cell(16, 447, 36, (7, 40, 5, 0)),
        },
        "steps 1 and 2, tabular": {"train": Cell(16, 430, 10)},
        "steps 1 and 2, DQN": {"train": Cell(15, 446, 15)},
        "step 1, then cloning": {"train": Cell(7, 474, 11)},
    }
}
BEHAVIOUR_KINDS = ("pick_up", "go_to", "open", "put_next")  # tasks, in the order of ``Cell.of_kinds``

# Its other tables of policies, by the name under which a study asks for one (``report: {paper: skills}``).
OTHER_BEHAVIOUR: dict[str, dict[str, dict[str, Cell]]] = {
    # Table 3, limit 20 steps; on A and B the text of section 5 gives success alone.
    "skills": {
        "Llama-3-8B as it is, on C": {"new_grids": Cell(0, 20, 75)},
        "TEDUO of A, on A": {"new_grids": Cell(99, None, None)},
        "TEDUO of B, on B": {"new_grids": Cell(81, None, None)},
        "TEDUO of A, on C": {"new_grids": Cell(0, 20, 51)},
        "TEDUO of B, on C": {"new_grids": Cell(0, 20, 28)},
        "TEDUO of A and B, on C": {"new_grids": Cell(60, 16, 37)},
    },
    # Table 4; its test goals are in unseen words.
    "num_goals": {
        f"TEDUO, {num_goals} training goals": {"new_grids_and_words": cell}
        for num_goals, cell in ((266, Cell(33, 342, 32)), (372, Cell(36, 330, 40)), (534, Cell(45, 286, 31)))
    },
    # Table B.7, of a model that was trained in grids of 1, 4, 6 and 9 rooms; limit 1000 steps, but 500 of the network.
    "larger_grids": {
        "TEDUO, 4x4 rooms": {"new_grids": Cell(53, 597, 33), "new_grids_and_words": Cell(36, 726, 38)},
        "TEDUO, 5x5 rooms": {"new_grids": Cell(35, 739, 36), "new_grids_and_words": Cell(31, 757, 36)},
        "TEDUO, 7x7 rooms": {"new_grids": Cell(19, 867, 31), "new_grids_and_words": Cell(25, 852, 35)},
        "BabyAI's imitation network, each size": {"new_grids": Cell(0, 500, None)},
    },
    # Figure 5, read off; with 2000 to 2500 pairs both come near 100 %, in about 8 steps.
    "data_efficiency": {
        "steps 1 and 2, abstracted states, about 1000 pairs": {"train": Cell(90, None, None)},
        "steps 1 and 2, states as they are, about 1000 pairs": {"train": Cell(80, None, None)},
    },
    # Figure B.1 has no percentages: on average 75 % of random data are best for goals that the collecting policy had,
    # 25 % for others, and as much comes out of random data alone.
    "mixtures": {},
}

# Table B.4: a proxy reward a goal, against the truth, in percent but for the area under the curve.
PROXY_SCORES: dict[str, list[dict[str, Any]]] = {
    "go_to": [
        {"goal": "go to a box", "auc": 0.90, "accuracy": 89, "precision": 96, "recall": 38},
        {"goal": "go to red door", "auc": 0.98, "accuracy": 94, "precision": 100, "recall": 0.2},
    ],
    "pick_up": [{"goal": "pick up a ball", "auc": 0.75, "accuracy": 98, "precision": 95, "recall": 83}],
    "open": [{"goal": "open a door", "auc": 0.92, "accuracy": 85, "precision": 95, "recall": 85}],
    "go_to_tile": [{"goal": "go to the tile (5,6)", "auc": 1.0, "accuracy": 100, "precision": 100, "recall": 100}],
    "put_next": [
        {"goal": "put a box next to a blue ball", "auc": 0.64, "accuracy": 100, "precision": 100, "recall": 25}
    ],
}
