"""Reading a batch: packing changes the work, not the result; text is predicted where it should be."""

from __future__ import annotations

import pytest
import torch

from kalm.llm.grounding.reading import RolloutHidden, read_rollouts
from tests.llm.models import ANSWERS, CONTINUOUS, DISCRETE, grounded_llm, hand_made_batch, one_rollout_alone


@pytest.mark.parametrize("is_discrete", [True, False])
def test_a_rollout_reads_the_same_alone_and_packed(is_discrete: bool) -> None:
    """Hidden vectors of each rollout, among others in a row and by itself."""
    model = grounded_llm(DISCRETE if is_discrete else CONTINUOUS)
    batch = hand_made_batch(is_discrete)
    packed = read_rollouts(model.backbone, model.codec, batch)
    alone = [
        read_rollouts(model.backbone, model.codec, one_rollout_alone(batch, index))[:-1]
        for index in range(len(batch.lengths))
    ]
    joined = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    for name, together, apart in zip(RolloutHidden._fields[:-1], packed[:-1], joined, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_width_of_rows_changes_nothing() -> None:
    """Narrow rows and one wide row."""
    model, batch = grounded_llm(), hand_made_batch()
    narrow, wide = (read_rollouts(model.backbone, model.codec, batch, row_size=size) for size in (1, 1000))
    torch.testing.assert_close(narrow.final, wide.final, atol=1e-5, rtol=1e-4)


def test_text_targets_are_the_answer_and_its_end() -> None:
    """Only the explanation has an answer; its targets are its tokens, then the end."""
    model, batch = grounded_llm(), hand_made_batch()
    hidden = read_rollouts(model.backbone, model.codec, batch)
    assert hidden.text_target.tolist() == [*model.backbone.tokenize(ANSWERS[0]), model.backbone.end_of_text]
    assert len(hidden.text) == len(hidden.text_target)


def test_an_action_is_predicted_without_being_seen() -> None:
    """Changing an action changes nothing at or before the observation it is predicted at."""
    model, batch = grounded_llm(), hand_made_batch()
    other = batch._replace(action=torch.cat([batch.action[:1], 1 - batch.action[1:2], batch.action[2:]]))
    before, after = (read_rollouts(model.backbone, model.codec, entry) for entry in (batch, other))
    torch.testing.assert_close(before.observation[:2], after.observation[:2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before.action[1], after.action[1], atol=1e-3)
    assert not torch.allclose(before.observation[2], after.observation[2], atol=1e-3)
    torch.testing.assert_close(before.observation[3], after.observation[3], atol=1e-6, rtol=1e-5)


def test_a_prompt_gets_the_gradients_of_all_its_rollouts() -> None:
    """Both rollouts of a shared prompt pull at the projection that the prompt goes through."""
    model, batch = grounded_llm(), hand_made_batch()
    weight = model.backbone.prompt_projection.weight
    gradients = []
    for row in (0, 1):
        hidden = read_rollouts(model.backbone, model.codec, batch)
        gradients.append(torch.autograd.grad(hidden.final[row, 0], weight)[0])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.allclose(*gradients)
