"""Scoring of a stream of responses: order, refusals, and memory that does not grow."""

import json
import tracemalloc

import numpy as np
import pytest

from experiments import reward_sources, score_responses

SIZE = 64


def by_length(prompts, responses):
    """Longer is better; a response "?" has no score."""
    return [None if r == "?" else len(r) + 0.01 * len(p) for p, r in zip(prompts, responses)]


def lengths(prompts, responses):
    del prompts
    return np.array([float(len(r)) for r in responses])


def run(tmp_path, *arguments):
    return score_responses.main([*map(str, arguments), "--out", str(tmp_path / "scores.jsonl")])


def written(tmp_path):
    return [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_scores_stand_in_the_order_of_the_file(tmp_path, capsys, size):
    lines = [
        '{"question": "ab", "response": "xyz"}', "no json", '{"question": "ab", "response": " "}',
        '{"response": "?"}', "", '{"question": 3, "response": "x"}',
        '{"response": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "x"}]}',
        '["list"]',
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    source = ("--callable", "test_score_responses:by_length", "--batch-size", size)
    columns = ("--columns", "prompt=question")
    assert run(tmp_path, "--responses", tmp_path / "in.jsonl", *source, *columns) == 0
    found = written(tmp_path)
    assert [row["line"] for row in found] == [1, 2, 3, 4, 6, 7, 8]
    assert [row["score"] for row in found] == [3.02, None, None, None, None, 1.02, None]
    refused = ["no_object", "empty_answer", "wrong_kind", "no_object"]
    assert [row["refused"] for row in found if "refused" in row] == refused
    assert "records: 7, refused: 4, without a score: 1" in capsys.readouterr().out


def test_a_generator_is_read_no_further_than_a_block():
    read = []

    def texts():
        for number in range(1000):
            read.append(number)
            yield "", "x" * (number % 7)

    for block, found in enumerate(reward_sources.stream(lengths, texts(), SIZE)):
        assert len(read) == min(SIZE * (block + 1), 1000)
        assert len(found) == min(SIZE, 1000 - SIZE * block)
        assert found[0] == SIZE * block % 7


def peak(count):
    """Greatest memory while `count` responses of 2000 characters are scored, in bytes."""
    texts = (("prompt", f"{number:2000d}") for number in range(count))
    tracemalloc.start()
    total = sum(found.sum() for found in reward_sources.stream(lengths, texts, SIZE))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 2000 * count
    return most


def test_memory_does_not_grow_with_the_number_of_responses():
    peak(SIZE)
    few, many = peak(10 * SIZE), peak(10_000)
    assert many < 1.5 * few < 1.5 * 10 * SIZE * 2000  # less than all of the few at once


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "allowed is one of --callable, --hf, --checkpoint; given are 0"),
        (["--callable", "a:b", "--batch-size", "0"], "--batch-size = 0; allowed is >= 1"),
        (["--callable", "a:b", "--columns", "answer=x"], "--columns has 'answer=x'"),
        (["--callable", "a:b"], "--callable = 'a:b' cannot be imported"),
        (["--callable", "a:b", "--size", "1"], "unrecognized arguments"),
        (["--checkpoint", "nowhere"], "--checkpoint = nowhere is not a folder"),
    ],
)
def test_bad_options(tmp_path, capsys, arguments, message):
    (tmp_path / "in.jsonl").write_text('{"response": "x"}\n')
    assert run(tmp_path, "--responses", tmp_path / "in.jsonl", *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "scores.jsonl").exists()


def test_a_file_without_a_usable_record(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "x"}\n')
    source = ("--callable", "test_score_responses:by_length")
    assert run(tmp_path, "--responses", tmp_path / "in.jsonl", *source) == 2
    assert "has no usable record" in capsys.readouterr().err
    assert not list(tmp_path.glob("scores*"))
