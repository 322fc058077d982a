"""The user's own text: what is read, how it is cut, what is held out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalm.core.errors import CheckpointError, DataError
from kalm.data.general_text import GeneralTextPieces, GeneralTextSource, read_texts
from kalm.llm.grounding.grounded_llm import GroundedLLM
from tests.llm.grounding.test_grounded_llm import trainer
from tests.llm.models import chain_grounding_data, tiny_backbone

SEED = (0, 1)


def written(path: Path, content: str) -> str:
    """The path of a file with this in it."""
    path.write_text(content, encoding="utf-8")
    return str(path)


def sentences(path: Path, number: int = 40, word: str = "word") -> str:
    """The path of a file of so many short texts, each another."""
    return written(path, "\n\n".join(f"{word} {index}" for index in range(number)))


def test_plain_text_is_cut_at_empty_lines_and_json_lines_at_every_line(tmp_path: Path) -> None:
    """Files one after the other; lines within a text stay, whatever separates lines elsewhere stays in JSON."""
    plain = written(tmp_path / "a.txt", "\none\nline\n\n \n\nanother\n")
    odd = "two\u2028parts"
    lines = [json.dumps({"text": odd, "source": "x"}, ensure_ascii=False), "", '{"text": " "}', '{"text": "last"}']
    assert read_texts([plain, written(tmp_path / "b.jsonl", "\n".join(lines))]) == ["one\nline", "another", odd, "last"]


def test_pieces_make_up_the_text(tmp_path: Path) -> None:
    """Nothing is lost or repeated; no piece has over 4 characters a token; words stay whole unless one is too long."""
    text = " ".join(f"w{index}" for index in range(200)) + " " + "x" * 100
    pieces = GeneralTextPieces([written(tmp_path / "a.txt", text)], num_tokens=8)
    every = [*pieces.training, *pieces.held_out]
    assert "".join(every) == text
    assert max(map(len, every)) == 32
    assert all(piece.startswith((" ", "w", "x")) for piece in every)
    assert len(pieces.held_out) == round(len(every) / 10)


def test_no_more_is_held_out_than_a_mean_needs(tmp_path: Path) -> None:
    """256 of 5,000; at least one, of two."""
    many, two = (GeneralTextPieces([sentences(tmp_path / f"{n}.txt", n)], 8) for n in (5000, 2))
    assert (len(many.training), len(many.held_out)) == (4744, 256)
    assert [text for batch in many.held_out_batches() for text in batch.texts] == many.held_out
    assert (two.training, two.held_out) == (["word 0"], ["word 1"])


def test_batches_are_a_function_of_seed_and_index(tmp_path: Path) -> None:
    """36 pieces in batches of 8: two epochs of 9 batches show each twice, in two orders; none is held out."""
    path = sentences(tmp_path / "a.txt")
    pieces, other = GeneralTextPieces([path], 8), GeneralTextPieces([path], 8)
    shown = [text for index in range(9) for text in pieces.batch(index, 8, SEED).texts]
    assert shown == [text for index in range(9) for text in other.batch(index, 8, SEED).texts]
    assert sorted(shown[:36]) == sorted(shown[36:]) == sorted(pieces.training)
    assert shown[:36] != shown[36:]
    assert pieces.batch(5, 8, SEED) != pieces.batch(5, 8, (0, 2))
    assert pieces.batch(0, 8, SEED).max_tokens == 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n\n \n", "a.txt holds no text; give another file"),
        ("a.txt", "one text only", "makes 1 piece of 8 tokens; it takes one to learn from and one to hold out"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": ', "line 3 of .*a.jsonl is no JSON"),
        ("a.jsonl", '{"text": "a"}\n{"words": "b"}', 'line 2 of .*a.jsonl has no "text" that is a string'),
        ("a.jsonl", '{"text": "a"}\n["b"]', 'line 2 of .*a.jsonl has no "text" that is a string'),
    ],
)
def test_files_without_usable_text_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Which, where, and what is expected."""
    with pytest.raises(DataError, match=message):
        GeneralTextPieces([written(tmp_path / name, content)], 8)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A missing one: what its folder holds. One in another encoding: where."""
    sentences(tmp_path / "there.txt")
    with pytest.raises(DataError, match=r"no file .*missing.txt; .* holds there.txt"):
        read_texts([str(tmp_path / "missing.txt")])
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match="latin.txt is not UTF-8: .*position 3"):
        read_texts([str(tmp_path / "latin.txt")])


def test_text_lies_beside_the_rollouts_and_changes_none_of_them(tmp_path: Path) -> None:
    """The same rollouts with and without; held-out text without any in batches."""
    path = sentences(tmp_path / "a.txt")
    plain = chain_grounding_data(tmp_path)
    mixed = chain_grounding_data(tmp_path, general_text=GeneralTextSource(path, 3, 16))
    batch = mixed.batch(4)
    assert (len(batch.general_text.texts), batch.general_text.max_tokens) == (3, 16)
    assert not plain.batch(4).general_text.texts
    other = chain_grounding_data(tmp_path, general_text=GeneralTextSource(path, 3, 16), seed=1)
    assert other.batch(4).general_text.texts != batch.general_text.texts
    assert batch.observation.equal(plain.batch(4).observation)
    watched = chain_grounding_data(tmp_path, general_text=GeneralTextSource([path]))
    assert not watched.batch(4).general_text.texts
    assert [len(loader.dataset) for loader in watched.val_dataloader()] == [40, 48, 1]
    pieces = watched.general_text
    assert watched.written_texts == [*plain.written_texts, *pieces.training, *pieces.held_out]


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Text to mix in without a file; a piece too short to predict anything; a file that is missing, at setup."""
    with pytest.raises(DataError, match="general_text.files names no file"):
        chain_grounding_data(tmp_path, general_text=GeneralTextSource(num_pieces=3))
    with pytest.raises(DataError, match="general_text.num_tokens is 7; they must be 0 or more, and 8 or more"):
        chain_grounding_data(tmp_path, general_text=GeneralTextSource("a.txt", num_tokens=7))
    with pytest.raises(DataError, match="no file .*missing.txt"):
        chain_grounding_data(tmp_path, general_text=GeneralTextSource(str(tmp_path / "missing.txt"))).setup("fit")


def test_a_run_goes_on_with_its_own_text_only(tmp_path: Path) -> None:
    """Resumed with another text, with less of it or with none it is refused."""
    path = sentences(tmp_path / "a.txt")
    data = chain_grounding_data(tmp_path, general_text=GeneralTextSource(path, 2))
    run = trainer(tmp_path, max_steps=1)
    run.fit(GroundedLLM(data.spec, tiny_backbone(), inner_size=8, schedule_updates=60), datamodule=data)
    run.save_checkpoint(tmp_path / "it.ckpt")
    other = sentences(tmp_path / "b.txt", word="other")
    for options, change in (
        ({"general_text": GeneralTextSource(other, 2)}, "general_text.files: '[0-9a-f]{12}' -> '[0-9a-f]{12}'"),
        ({"general_text": GeneralTextSource(path, 1)}, "general_text.num_pieces: 2 -> 1"),
        ({}, "general_text.files: '[0-9a-f]{12}' -> None"),
    ):
        changed = chain_grounding_data(tmp_path, **options)
        model = GroundedLLM(data.spec, tiny_backbone(), inner_size=8, schedule_updates=60)
        with pytest.raises(CheckpointError, match=change):
            trainer(tmp_path, max_steps=2).fit(
                model, datamodule=changed, ckpt_path=tmp_path / "it.ckpt", weights_only=True
            )
