"""The policy data module: which transitions an update gets, in which mixture, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from tensordict import TensorDict
from torchrl.data import ReplayBufferEnsemble

from kalm.core import names
from kalm.core.errors import CheckpointError, DataError
from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.specs import vector_spec
from kalm.data.choice import RolloutFilter
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.symmetry import SymmetricTransitions, SymmetryKind
from kalm.store.reader import RolloutStore
from tests.chain_domain import CELL_NAMES, ChainDomain
from tests.data.rollouts import DOMAIN, arguments, imagined_rollouts, real_rollouts, splits_of, write_store
from tests.line_domain import LineDomain
from tests.word_encoder import WordEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real and three imagined stores."""
    root = tmp_path_factory.mktemp("stores")
    write_store(root / "real", real_rollouts(60))
    for split in ("rephrase", "easy", "hard"):
        write_store(root / split, imagined_rollouts(40, split))
    return root


def make_data(folder: Path, imagined: tuple[str, ...] = ("rephrase", "easy", "hard"), **options: Any) -> PolicyData:
    """A data module over the stores, small by default."""
    paths = [str(folder / name) for name in imagined]
    defaults = {
        "real": RealRollouts(str(folder / "real"), max_rollouts=50),
        "imagined": ImaginedRollouts(paths, RolloutFilter.success) if paths else None,
        "batch_size": 10,
        "updates_per_step": 4,
        "evaluation": EvaluationEpisodes(),
    }
    return PolicyData(DOMAIN, WordEncoder(), **arguments(defaults, **options))


def test_batch_has_the_shared_keys_and_types(folder: Path) -> None:
    """K stacked minibatches with exactly the keys of ``kalm.core.names``."""
    batch = make_data(folder).batch(0)
    assert batch.batch_size == (4, 10)
    assert set(batch.keys(True, True)) == {
        *(names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION, names.REWARD, names.TERMINATED, names.TRUNCATED),
        *(names.ROLLOUT_ID, names.STEP, names.INSTRUCTION_ID, names.SOURCE),
    }
    assert batch[names.OBSERVATION].shape == (4, 10, 5)
    assert batch[names.OBSERVATION].dtype == torch.float32
    assert batch[names.ACTION].dtype == torch.int64
    assert batch[names.TERMINATED].dtype == torch.bool


@pytest.mark.parametrize(("fraction", "imagined_rows"), [(0.5, 5), (0.29, 3), (0.04, 0), (1.0, 10)])
def test_every_minibatch_has_exactly_the_configured_mixture(folder: Path, fraction: float, imagined_rows: int) -> None:
    """Half of 10 is 5 rows, 0.29 is 3, in each of 200 minibatches; a fraction that rounds to no row is refused."""
    if not imagined_rows:
        with pytest.raises(DataError, match="imagined.fraction 0.04 of batch_size 10 makes 0"):
            make_data(folder, imagined__fraction=fraction)
        return
    data = make_data(folder, imagined__fraction=fraction)
    for index in range(50):
        is_imagined = data.batch(index)[names.SOURCE] == Source.IMAGINARY
        assert is_imagined.sum(1).tolist() == [imagined_rows] * 4
        assert not is_imagined[:, : 10 - imagined_rows].any()


@pytest.mark.parametrize("balanced", [False, True])
def test_transitions_come_from_the_buffer_ensemble_and_from_kept_rollouts_only(folder: Path, balanced: bool) -> None:
    """Every row is a row of its store; over many draws all kept transitions come and no other."""
    data = make_data(folder, balance_goal_splits=balanced)
    assert isinstance(data.buffer, ReplayBufferEnsemble)
    assert data.buffer.sample(20).numel() == 20
    seen: dict[tuple[int, int], TensorDict] = {}
    for index in range(150):
        batch = data.batch(index).view(-1)
        seen |= {(int(row["rollout_id"]), int(row["step"])): row for row in batch}
    expected: dict[tuple[int, int], TensorDict] = {}
    first_rollout = 0
    for number, store in enumerate(data.stores):
        kept = range(50) if number == 0 else store.is_success.nonzero().squeeze(-1).tolist()
        for row in store.transitions:
            if int(row["rollout_id"]) in kept:
                expected[first_rollout + int(row["rollout_id"]), int(row["step"])] = row
        first_rollout += store.num_rollouts
    assert seen.keys() == expected.keys()
    for place, row in seen.items():
        for key in (names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION, names.REWARD, names.TERMINATED):
            assert torch.equal(row[key], expected[place][key])
        assert row[names.SOURCE] == expected[place][names.SOURCE]


def test_imagined_rows_can_be_shared_out_evenly_among_goal_splits(folder: Path) -> None:
    """Five imagined rows of ten: two, two and one, whatever the stores hold; three splits need three rows."""
    data = make_data(folder, balance_goal_splits=True)
    for splits in splits_of(data, data.batch(3)):
        assert Counter(splits.tolist()) == {"train": 5, "rephrase": 2, "easy": 2, "hard": 1}
    fewest = make_data(folder, balance_goal_splits=True, imagined__fraction=0.3)
    assert Counter(splits_of(fewest, fewest.batch(0))[0].tolist()) == {"train": 7, "rephrase": 1, "easy": 1, "hard": 1}
    with pytest.raises(
        DataError, match="2 imagined rows of a minibatch, shared out among 3 goal splits, leave none for hard"
    ):
        make_data(folder, balance_goal_splits=True, imagined__fraction=0.2).setup("fit")


def test_a_goal_split_can_get_more_of_the_imagined_rows(folder: Path) -> None:
    """Of ten imagined rows by 1, 1 and 3: two, two, six; of five: one, one, three."""
    weights = {"hard": 3.0}
    data = make_data(folder, balance_goal_splits=True, goal_split_weights=weights)
    assert Counter(splits_of(data, data.batch(3))[0].tolist()) == {"train": 5, "rephrase": 1, "easy": 1, "hard": 3}
    whole = make_data(folder, balance_goal_splits=True, goal_split_weights=weights, imagined__fraction=1.0)
    assert Counter(splits_of(whole, whole.batch(3))[0].tolist()) == {"rephrase": 2, "easy": 2, "hard": 6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal_split_weights": {"hard": 3.0}}, "set balance_goal_splits to true"),
        ({"goal_split_weights": {"harder": 3.0}, "balance_goal_splits": True}, "'harder'; the splits are"),
        ({"goal_split_weights": {"hard": 0.0}, "balance_goal_splits": True}, "a weight is a number above 0"),
        ({"goal_split_weights": {"hard": float("nan")}, "balance_goal_splits": True}, "a weight is a number above 0"),
    ],
)
def test_weights_of_goal_splits_that_mean_nothing_are_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    """Without balance, of an unknown split, not above 0: each by name."""
    with pytest.raises(DataError, match=message):
        make_data(folder, **options)


def test_transitions_of_one_part_are_equally_likely(folder: Path) -> None:
    """Of three imagined stores each is drawn in proportion to its kept transitions (chi-square, 3 sigma each)."""
    data = make_data(folder, batch_size=200, updates_per_step=50)
    splits = np.concatenate([splits_of(data, data.batch(index))[:, 100:].ravel() for index in range(4)])
    lengths = [store.rollouts["length"][store.is_success].sum().item() for store in data.stores[1:]]
    for split, length in zip(("rephrase", "easy", "hard"), lengths, strict=True):
        share = length / sum(lengths)
        sigma = (share * (1 - share) / len(splits)) ** 0.5
        assert abs((splits == split).mean() - share) < 3 * sigma


def test_an_update_gets_the_same_rows_for_every_number_of_updates_per_step(folder: Path) -> None:
    """Twelve updates as 12 x 1, 3 x 4 and 1 x 12: Equal. So resuming is exact wherever a step ends."""
    by_k = {k: make_data(folder, updates_per_step=k) for k in (1, 4, 12)}
    updates = {k: torch.cat([data.batch(i) for i in range(12 // k)]) for k, data in by_k.items()}
    for key in updates[1].keys(True, True):
        assert torch.equal(updates[1][key], updates[4][key])
        assert torch.equal(updates[1][key], updates[12][key])


def test_batches_depend_on_seed_and_index_only(folder: Path) -> None:
    """Asked in any order, in another instance: the same; another seed or index: not."""
    data, other = make_data(folder, seed=3), make_data(folder, seed=3)
    later = data.batch(7)
    _ = [other.batch(index) for index in (9, 2)]
    assert (later == other.batch(7)).all()
    assert not (later[names.OBSERVATION] == data.batch(8)[names.OBSERVATION]).all()
    assert not (later[names.OBSERVATION] == make_data(folder, seed=4).batch(7)[names.OBSERVATION]).all()


def test_batch_is_a_copy(folder: Path) -> None:
    """Writing into a batch changes neither the store nor a later batch."""
    data = make_data(folder)
    before = data.batch(0)
    data.batch(0)[names.OBSERVATION].fill_(9.0)
    assert (data.batch(0) == before).all()


def test_instruction_ids_point_to_one_table_of_distinct_sentences(folder: Path) -> None:
    """Ids of all stores are mapped to one table; the row's embedding is that of the row's own sentence."""
    data = make_data(folder)
    assert len(set(data.instructions)) == len(data.instructions)
    assert data.goal_embeddings.shape == (len(data.instructions), 16)
    first_rollout = 0
    sentence_of = {}
    for store in data.stores:
        for index in range(store.num_rollouts):
            sentence_of[first_rollout + index] = store.rollout(index).instruction
        first_rollout += store.num_rollouts
    batch = data.batch(0).view(-1)
    for instruction_id, rollout_id in zip(batch["instruction_id"].tolist(), batch["rollout_id"].tolist(), strict=True):
        assert data.instructions[instruction_id] == sentence_of[rollout_id]
    sentences = [sentence_of[rollout_id] for rollout_id in batch["rollout_id"].tolist()]
    assert torch.equal(data.goal_embeddings[batch["instruction_id"]], WordEncoder().encode(sentences))


def test_sentences_are_handed_over_word_by_word(folder: Path) -> None:
    """The vectors of the words one after the other, then zeros, as halves; a row is its own sentence's."""
    data = make_data(folder, num_goal_tokens=9)
    assert (data.spec.goal_embedding_size, data.spec.num_goal_tokens) == (9 * 16, 9)
    assert data.goal_embeddings.shape == (len(data.instructions), 9 * 16)
    assert data.goal_embeddings.dtype == torch.float16
    words, is_word = WordEncoder().token_vectors(data.instructions)
    rows = data.goal_embeddings.unflatten(-1, (9, 16))
    torch.testing.assert_close(rows[:, : words.shape[1]][is_word].float(), words[is_word], atol=2e-3, rtol=1e-3)
    assert (rows != 0).any(-1).sum(-1).tolist() == [len(sentence.split()) for sentence in data.instructions]
    assert torch.equal(data.embed(["go to the centre"])[0, 4 * 16 :], torch.zeros(5 * 16, dtype=torch.float16))


def test_a_sentence_of_too_many_words_is_named(folder: Path) -> None:
    """None is cut off in silence."""
    data = make_data(folder, num_goal_tokens=3)
    with pytest.raises(DataError, match="num_goal_tokens is 3, but 'please be at the centre soon' has 6 tokens"):
        data.embed(["go to the", "please be at the centre soon"])


def test_without_imagined_stores_all_rows_are_real(folder: Path) -> None:
    """The baseline: no imagined rollouts, whatever the fraction says."""
    batch = make_data(folder, imagined=()).batch(0)
    assert batch.batch_size == (4, 10)
    assert (batch[names.SOURCE] == Source.REAL).all()


def test_nothing_left_after_the_filter_is_an_error_with_counts(folder: Path, tmp_path: Path) -> None:
    """A filter that no rollout passes must not become real-only training in silence."""
    failures = [r for r in imagined_rollouts(40, "easy") if not r.is_success]
    write_store(tmp_path / "failures", failures)
    data = make_data(folder, imagined=(str(tmp_path / "failures"),), imagined__filter=RolloutFilter.both)
    with pytest.raises(DataError, match=rf"filter: both[\s\S]*'num_rollouts': {len(failures)}, 'plausible'"):
        data.setup("fit")


def test_normalisation_is_that_of_the_real_rollouts_in_use(folder: Path) -> None:
    """Mean and standard deviation of the first 50 real rollouts' observations; an entry that never moves gets 1."""
    data = make_data(folder)
    used = data.stores[0].transitions[names.OBSERVATION][data.stores[0].transitions["rollout_id"] < 50]
    torch.testing.assert_close(data.observation_mean, used.mean(0))
    torch.testing.assert_close(data.observation_std, used.std(0, unbiased=False))
    still = make_data(folder, imagined=(), real__max_rollouts=1)
    first = still.stores[0].transitions[names.OBSERVATION][still.stores[0].transitions["rollout_id"] < 1]
    constant = first.std(0, unbiased=False) == 0
    assert constant.any()
    assert (still.observation_std[constant] == 1).all()


def test_spec_needs_no_data() -> None:
    """Sizes are known before anything is read."""
    data = PolicyData(DOMAIN, WordEncoder(), RealRollouts("nowhere"))
    assert data.spec == vector_spec(5, 2, is_discrete=True, goal_embedding_size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluation__goal_splits": ["train", "medium"]}, r"'medium'; the splits are train, rephrase, easy, hard"),
        ({"evaluation__goal_splits": []}, "none named; the splits are train"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"updates_per_step": 0}, "updates_per_step is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"imagined__fraction": 1.2}, "it must make 1 to 10"),
    ],
)
def test_bad_settings_are_refused_at_once(folder: Path, options: dict[str, Any], message: str) -> None:
    """Before any data is read, with what is allowed."""
    with pytest.raises(DataError, match=message):
        make_data(folder, **options)


def test_a_store_of_another_domain_is_refused(folder: Path) -> None:
    """Name and spaces must fit; both differences are told."""

    class OtherDomain(ChainDomain):
        name = "other"

    data = PolicyData(OtherDomain(), WordEncoder(), RealRollouts(str(folder / "real")))
    with pytest.raises(DataError, match=r"not of the domain other:\n  domain: 'chain', expected 'other'"):
        data.setup("fit")


def test_a_missing_imagined_store_is_told_before_anything_is_collected(tmp_path: Path) -> None:
    """``prepare_data`` looks at the imagined stores first."""
    data = PolicyData(
        DOMAIN, WordEncoder(), RealRollouts(str(tmp_path / "real")), ImaginedRollouts([str(tmp_path / "imagined")])
    )
    with pytest.raises(DataError, match="no rollout store in .*imagined"):
        data.prepare_data()
    assert not (tmp_path / "real").exists()


def test_absent_real_rollouts_are_collected_and_present_ones_kept(tmp_path: Path) -> None:
    """``prepare_data`` makes the real store once."""
    data = PolicyData(DOMAIN, WordEncoder(), RealRollouts(str(tmp_path / "real"), num_collected=12, collect_seed=5))
    data.prepare_data()
    fingerprint = RolloutStore(tmp_path / "real").fingerprint
    again = PolicyData(DOMAIN, WordEncoder(), RealRollouts(str(tmp_path / "real"), num_collected=99))
    again.prepare_data()
    assert RolloutStore(tmp_path / "real").num_rollouts == 12
    assert RolloutStore(tmp_path / "real").fingerprint == fingerprint


class Recorder(LightningModule):
    """Keeps what it is given; counts K updates a step the way the policies do."""

    def __init__(self) -> None:
        """One weight, so that there is something to optimise."""
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows: list[torch.Tensor] = []

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """One optimizer step a minibatch."""
        for minibatch in batch:
            self.rows.append(minibatch["rollout_id"] * 1000 + minibatch["step"])
            self.optimizers().step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, root: Path, max_steps: int, checkpoint: Path | None = None, k: int = 4) -> Recorder:
    """Train the recorder; with a checkpoint, go on from it."""
    module = Recorder()
    trainer = Trainer(
        default_root_dir=root,
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=make_data(folder, updates_per_step=k), ckpt_path=checkpoint)
    trainer.save_checkpoint(root / f"{max_steps}.ckpt")
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_resumed_run_gets_the_rows_an_uninterrupted_one_gets(folder: Path, tmp_path: Path) -> None:
    """40 updates against 16 + 24, through Lightning's own loop: Equal, nothing seen twice or skipped."""
    whole = fit(folder, tmp_path, 40).rows
    first = fit(folder, tmp_path, 16).rows
    second = fit(folder, tmp_path, 40, checkpoint=tmp_path / "16.ckpt").rows
    assert len(whole) == 40
    assert torch.equal(torch.stack(first + second), torch.stack(whole))
    with pytest.raises(CheckpointError, match="update 16, which is no multiple of updates_per_step 5"):
        fit(folder, tmp_path, 40, checkpoint=tmp_path / "16.ckpt", k=5)


def test_evaluation_episodes_are_fixed_and_never_shared(folder: Path) -> None:
    """Validation and test episodes: the asked number a split, the same for every seed, no start in both."""
    data, other = (make_data(folder, seed=seed, evaluation=EvaluationEpisodes(6, 9)) for seed in (0, 9))
    validation = [episode for batch in data.val_dataloader() for episode in batch]
    test = [episode for batch in data.test_dataloader() for episode in batch]
    assert [episode.instructed.goal_split for episode in validation] == [
        split for split in ChainDomain.goal_splits for _ in range(6)
    ]
    assert len(test) == 4 * 9
    assert not {episode.seed for episode in validation} & {episode.seed for episode in test}
    assert len(data.val_dataloader()) == 1
    assert [episode for batch in other.val_dataloader() for episode in batch] == validation


def test_policies_side_by_side_get_the_minibatches_of_their_own_seeds(folder: Path) -> None:
    """Three of them: (K, 3, B), each what its seed alone would get; and one of them again afterwards."""
    data = make_data(folder, seed=5)
    data.num_seeds = 3
    together = data.batch(2)
    assert together.batch_size == (4, 3, 10)
    for number in range(3):
        assert (together[:, number] == make_data(folder, seed=5 + number).batch(2)).all()
    data.num_seeds = 1
    assert (data.batch(2) == together[:, 0]).all()


def test_rows_under_a_symmetry_are_the_recorded_ones_under_other_names(folder: Path) -> None:
    """Half of the rows are mirrored: cells, actions and the words of the sentence; the rest of a row stays."""
    plain, shown = make_data(folder), make_data(folder, symmetry=SymmetryKind.names)
    mirror = DOMAIN.symmetries[1]
    num_mirrored, num_rows = 0, 0
    for index in range(20):
        recorded, turned = plain.batch(index).flatten(), shown.batch(index).flatten()
        for row in range(len(recorded)):
            before, after = recorded[row], turned[row]
            sentences = (
                plain.instructions[before[names.INSTRUCTION_ID]],
                shown.instructions[after[names.INSTRUCTION_ID]],
            )
            assert after[names.ROLLOUT_ID] == before[names.ROLLOUT_ID]
            is_mirrored = not torch.equal(after[names.ACTION], before[names.ACTION])
            num_mirrored, num_rows = num_mirrored + is_mirrored, num_rows + 1
            if not is_mirrored:
                assert torch.equal(after[names.OBSERVATION], before[names.OBSERVATION])
                assert sentences[0] == sentences[1]
                continue
            assert torch.equal(after[names.OBSERVATION], before[names.OBSERVATION].flip(0))
            assert torch.equal(after[names.NEXT_OBSERVATION], before[names.NEXT_OBSERVATION].flip(0))
            assert mirror.text(sentences[0]) == sentences[1]
    assert 0.45 < num_mirrored / num_rows < 0.55
    assert len(shown.goal_embeddings) == len(shown.instructions)


def test_no_sentence_is_shown_that_the_stores_do_not_have(tmp_path: Path) -> None:
    """Of two sentences and one mirror image, the pair is exchanged and the third is never mirrored."""
    mirror = DOMAIN.symmetries[1]
    pair = next(g.instruction for g in DOMAIN.instructed_goals("train") if mirror.text(g.instruction) != g.instruction)
    alone = "nobody ever said left of this"
    assert mirror.text(alone) != alone
    sentences = [pair, mirror.text(pair), alone]
    shown = SymmetricTransitions(sentences, DOMAIN.symmetries)
    columns = {
        names.INSTRUCTION_ID: torch.tensor([0, 0, 1, 1, 2, 2]),
        names.OBSERVATION: torch.eye(6, len(mirror.observation_order)),
        names.NEXT_OBSERVATION: torch.eye(6, len(mirror.observation_order)),
        names.ACTION: torch.zeros(6, dtype=torch.int64),
    }
    after = shown(columns, torch.tensor([0, 1, 2, 3, 4, 5]))
    assert after[names.INSTRUCTION_ID].tolist() == [0, 1, 1, 0, 2, 2]
    unchanged = (after[names.OBSERVATION] == columns[names.OBSERVATION]).all(dim=1)
    assert unchanged.tolist()[4:] == [True, True]


def test_the_symmetry_is_the_same_for_every_number_of_updates_per_step_and_for_a_whole_window(folder: Path) -> None:
    """Four updates at once are four updates one by one, and the steps of a window are all mirrored or none."""
    at_once = make_data(folder, symmetry=SymmetryKind.names, updates_per_step=4).batch(1)
    one_by_one = make_data(folder, symmetry=SymmetryKind.names, updates_per_step=1)
    for number in range(4):
        assert torch.equal(at_once[names.OBSERVATION][number], one_by_one.batch(4 + number)[names.OBSERVATION][0])
    windows = make_data(folder, symmetry=SymmetryKind.names, sequence_length=3).batch(0)
    assert (windows[names.INSTRUCTION_ID] == windows[names.INSTRUCTION_ID][..., :1]).all()
    is_real = windows[names.PADDING_MASK][..., 1:]
    follows = windows[names.OBSERVATION][..., 1:, :] == windows[names.NEXT_OBSERVATION][..., :-1, :]
    assert follows[is_real & windows[names.PADDING_MASK][..., :-1]].all()


def test_a_domain_without_symmetries_cannot_show_them() -> None:
    """The error names the domain."""
    with pytest.raises(DataError, match="symmetry is names, but the domain line has none of that kind"):
        PolicyData(LineDomain(), WordEncoder(), RealRollouts("nowhere"), symmetry=SymmetryKind.names)


def test_half_of_the_rows_are_shown_in_other_words_for_the_same_goal(folder: Path) -> None:
    """Every other sentence of a goal about as often as the next; nothing else of a row changes."""
    plain, shown = make_data(folder), make_data(folder, paraphrase=True)
    recorded = torch.cat([plain.batch(index).flatten() for index in range(50)])
    said = torch.cat([shown.batch(index).flatten() for index in range(50)])
    for key in set(recorded.keys(True, True)) - {names.INSTRUCTION_ID}:
        assert torch.equal(recorded[key], said[key])
    goal_of = {row.instruction: row.goal["cell"] for store in plain.stores for row in store.instructions}
    pairs = [
        (plain.instructions[before], shown.instructions[after])
        for before, after in zip(recorded[names.INSTRUCTION_ID], said[names.INSTRUCTION_ID], strict=True)
    ]
    told = [(own, other) for own, other in pairs if goal_of[own] != 2]
    assert [own for own, _ in pairs if goal_of[own] == 2] == [other for own, other in pairs if goal_of[own] == 2]
    others = [(own, other) for own, other in told if own != other]
    assert 0.45 < len(others) / len(told) < 0.55
    for own, other in others:
        name = CELL_NAMES[goal_of[own]]
        assert other in (f"find the {name}", f"your place is the {name}")
    assert 0.4 < sum(other.startswith("find") for _, other in others) / len(others) < 0.6
    assert len(shown.goal_embeddings) == len(shown.instructions)


def test_a_window_is_shown_in_the_same_words_throughout_and_updates_at_once_are_updates_one_by_one(
    folder: Path,
) -> None:
    """What is shown of a paraphrase depends on the update and the row alone, also under a symmetry."""
    options: Any = {"paraphrase": True, "symmetry": SymmetryKind.names}
    at_once = make_data(folder, updates_per_step=4, **options).batch(1)
    one_by_one = make_data(folder, updates_per_step=1, **options)
    for number in range(4):
        assert torch.equal(at_once[names.INSTRUCTION_ID][number], one_by_one.batch(4 + number)[names.INSTRUCTION_ID][0])
    windows = make_data(folder, sequence_length=3, **options).batch(0)
    assert (windows[names.INSTRUCTION_ID] == windows[names.INSTRUCTION_ID][..., :1]).all()


def test_a_domain_without_paraphrases_cannot_show_them(tmp_path: Path) -> None:
    """The error names the domain."""

    class OneWordDomain(LineDomain):
        def paraphrases(self, instructed: InstructedGoal) -> list[str]:
            return []

    domain = OneWordDomain()
    write_store(tmp_path / "line", list(domain.collect(3, seed=0)), domain=domain)
    data = PolicyData(domain, WordEncoder(), RealRollouts(str(tmp_path / "line")), paraphrase=True)
    with pytest.raises(DataError, match="paraphrase is true, but the domain line has no paraphrases"):
        data.batch(0)


def test_splits_that_are_kept_for_the_test_are_not_validated(tmp_path: Path) -> None:
    """Validation has episodes of the splits that it names, the test of all."""
    data = make_data(tmp_path, evaluation=EvaluationEpisodes(6, 9, validation_splits=["train"]))
    validated, tested = (
        {episode.instructed.goal_split for batch in loader for episode in batch}
        for loader in (data.val_dataloader(), data.test_dataloader())
    )
    assert validated == {"train"}
    with pytest.raises(DataError, match="'esay'; the splits are"):
        make_data(tmp_path, evaluation=EvaluationEpisodes(6, 9, validation_splits=["esay"]))
    assert tested == set(ChainDomain.goal_splits)
