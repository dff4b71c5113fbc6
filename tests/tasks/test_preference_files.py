import json
import math

import numpy as np
import pytest

from jaxreward.tasks import preference_files as files
from jaxreward.tasks import preference_rows


def write(path, rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


def pair(chosen="good", rejected="bad", prompt="say", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def label(response="good", liked=True, prompt="say", **more):
    return {"prompt": prompt, "response": response, "label": liked, **more}


def chat(*contents):
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents)]


def save_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    "row, prompt",
    [
        (pair(), "say"),
        ({"chosen": "good", "rejected": "bad"}, ""),
        (pair(chat("say", "good"), chat("say", "bad")), "say"),  # UltraFeedback
        ({"chosen": chat("say", "good"), "rejected": chat("say", "bad")}, "say"),
        (pair(chat("", "good")[1:], chat("", "bad")[1:], chat("say")), "say"),  # TRL
        (
            pair(chat("say", "what", "this", "good"), chat("say", "what", "this", "bad")),
            "user: say\n\nassistant: what\n\nuser: this",
        ),
        ({"context": "say", "chosen": "good", "rejected": "bad"}, "say"),
        (pair(chat("say", "good"), chat("say", "bad"), ""), "say"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_formats_of_pairs(tmp_path, row, prompt, suffix):
    path = tmp_path / f"data{suffix}"
    loaded = files.read_pairs((write if suffix == ".jsonl" else save_parquet)(path, [row]))
    assert loaded.rows == (preference_rows.Pair(1, prompt, "good", "bad", 1.0, 1.0, None, ""),)
    assert loaded.refused == loaded.noted == {}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_responses_side_by_side(tmp_path, suffix):
    """HelpSteer3, and HelpSteer2 by its other names."""
    side = lambda number, strength: {
        "domain": "general", "context": chat(f"say {number}", "what", "this"), "response1": "good",
        "response2": "bad", "overall_preference": strength, "individual_preference": [],
    }  # fmt: skip
    rows = [side(1, -2), side(2, 1), side(3, 0), side(4, None), {**side(5, 3), "response1": "bad"}]
    save = write if suffix == ".jsonl" else save_parquet
    loaded = files.read_pairs(save(tmp_path / f"a{suffix}", rows))
    assert [(r.first, r.second, r.target, r.margin) for r in loaded.rows] == [
        ("good", "bad", 1.0, 2.0), ("bad", "good", 1.0, 1.0), ("good", "bad", 0.5, 0.0)]
    assert loaded.rows[0].prompt == "user: say 1\n\nassistant: what\n\nuser: this"
    tally = files.Tally
    assert loaded.refused == {"missing_column": tally(1, 4), "identical_pair": tally(1, 5)}
    assert loaded.noted == {"zero_margin_is_tie": tally(1, 3)}
    other = {"prompt": "say", "response_1": "bad", "response_2": "good"}
    rows = [{**other, "preference_strength": 3}, {**other, "preference_strength": "3"}]
    loaded = files.read_pairs(save(tmp_path / f"b{suffix}", rows if suffix == ".jsonl" else rows[:1]))
    assert (loaded.rows[0].first, loaded.rows[0].margin) == ("good", 3.0)
    assert suffix == ".parquet" or loaded.refused == {"preference_not_finite": tally(1, 2)}


@pytest.mark.parametrize("name", ["response", "completion"])
@pytest.mark.parametrize("value", ["good", [{"role": "assistant", "content": "good"}]])
def test_formats_of_labels(tmp_path, name, value):
    rows = [{"prompt": "say", name: value, "label": False, "user": 7, "weight": 2}]
    for path in (write(tmp_path / "a.jsonl", rows), save_parquet(tmp_path / "a.parquet", rows)):
        assert files.read_labels(path).rows == (preference_rows.Label(1, "say", "good", False, 2.0, "7"),)


REFUSED = {
    "not_json": '{"chosen": ',
    "not_an_object": "[1]",
    "missing_column": {"chosen": "x", "prompt": "say"},
    "not_text": pair(chosen=[1, 2]),
    "empty_response": pair(chosen=" \n"),
    "last_message_is_no_response": pair(chat("say", "good", "thanks"), chat("say", "bad")),
    "different_prompts": pair(chat("say", "good"), chat("tell", "bad")),
    "identical_pair": pair("same", "same"),
    "weight_not_finite": pair(weight=math.nan),
    "margin_not_finite": pair(margin=math.inf),
    "score_not_finite": pair(chosen_score="8", rejected_score=1),
    "negative_weight": pair(weight=-1),
    "negative_margin": pair(score_chosen=1.0, score_rejected=2.5),
    "no_annotator": pair(annotator=None),
    "unknown_annotator": pair(annotator="eve"),
    "annotator_not_text": pair(annotator=[1]),
    "duplicate": pair("fine", "poor", annotator="ann"),
}


@pytest.mark.parametrize("cause", REFUSED)
def test_each_defect_is_refused_and_counted(tmp_path, cause):
    good = pair("fine", "poor", annotator="ann")
    wrong = REFUSED[cause]
    if isinstance(wrong, dict) and "annotator" not in wrong:
        wrong = {**wrong, "annotator": "ann"}
    path = write(tmp_path / "a.jsonl", [good, wrong, "", wrong])
    loaded = files.read_pairs(path, annotators=("ann", "bob"))
    assert [row.where for row in loaded.rows] == [1]
    assert loaded.refused == {cause: files.Tally(2, 2)}
    assert files.describe(loaded) == f"1 pairs kept, 2 refused ({cause} 2 from line 2)"


@pytest.mark.parametrize(
    "row, cause",
    [
        (pair(chat("other", "good"), chat("other", "bad")), "different_prompts"),
        (pair("\ud800", "bad"), "not_text"),
        (pair([{"role": "assistant"}], "bad"), "not_text"),
        (pair([], "bad"), "empty_response"),
        (pair(weight=10**400), "weight_not_finite"),
        (pair(weight=True), "weight_not_finite"),
        (pair(chosen=None), "missing_column"),
    ],
)
def test_further_defects(tmp_path, row, cause):
    loaded = files.read_pairs(write(tmp_path / "a.jsonl", [pair("fine", "poor"), row]))
    assert loaded.refused == {cause: files.Tally(1, 2)}


@pytest.mark.parametrize("liked", ["yes", 2, 0.5, [True]])
def test_labels_are_boolean(tmp_path, liked):
    loaded = files.read_labels(write(tmp_path / "a.jsonl", [label(), label("x", liked)]))
    assert loaded.refused == {"label_not_boolean": files.Tally(1, 2)}


def test_labels_may_be_numbers(tmp_path):
    """As in a table whose column of labels has gaps."""
    rows = [label("a", 1.0), label("b", None), label("c", 0.0), label("d", math.nan), label("e", 1)]
    loaded = files.read_labels(write(tmp_path / "a.jsonl", rows))
    assert [(row.response, row.liked) for row in loaded.rows] == [
        ("a", True), ("c", False), ("e", True)]
    tally = files.Tally
    assert loaded.refused == {"missing_column": tally(1, 2), "label_not_boolean": tally(1, 4)}


def test_a_contradiction_is_a_tie_or_refused(tmp_path):
    rows = [pair("a", "b"), pair("c", "d"), pair("b", "a"), pair("a", "b")]
    path = write(tmp_path / "a.jsonl", rows)
    tied = files.read_pairs(path)
    assert [(row.where, row.target) for row in tied.rows] == [(1, 0.5), (2, 1.0)]
    assert tied.refused == {"contradictory": files.Tally(1, 3), "duplicate": files.Tally(1, 4)}
    assert tied.noted == {"contradiction_is_tie": files.Tally(1, 1)}
    strict = files.read_pairs(path, contradiction="refuse")
    assert [row.where for row in strict.rows] == [2]
    assert strict.refused["contradictory"] == files.Tally(2, 1)
    with pytest.raises(ValueError, match="contradiction = 'drop'; allowed are 'tie', 'refuse'"):
        files.read_pairs(path, contradiction="drop")


def test_annotators_may_disagree(tmp_path):
    rows = [pair("a", "b", user="ann"), pair("b", "a", user="bob"), pair("a", "b", user="cat")]
    loaded = files.read_pairs(write(tmp_path / "a.jsonl", rows))
    assert [row.target for row in loaded.rows] == [1.0] * 3 and loaded.refused == {}
    assert loaded.noted == {"annotators_disagree": files.Tally(3, 1)}


def test_a_contradictory_label_is_refused(tmp_path):
    rows = [label("a"), label("a", False), label("b"), label("b"), label("c", False)]
    loaded = files.read_labels(write(tmp_path / "a.jsonl", rows))
    assert [row.where for row in loaded.rows] == [3, 5]
    assert loaded.refused == {"contradictory": files.Tally(2, 1), "duplicate": files.Tally(1, 4)}


def test_scores_are_margins_and_equal_ones_ties(tmp_path):
    rows = [
        pair("a", "b", chosen_score=3, rejected_score=1.5),
        pair("c", "d", score_chosen=2, score_rejected=2),
    ]
    loaded = files.read_pairs(write(tmp_path / "a.jsonl", rows))
    assert [(row.margin, row.target) for row in loaded.rows] == [(1.5, 1.0), (0.0, 0.5)]
    assert loaded.noted == {"zero_margin_is_tie": files.Tally(1, 2)}


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"win": "good", "lose": "bad"}])
    loaded = files.read_pairs(path, columns={"chosen": "win", "rejected": "lose"})
    assert loaded.rows[0].first == "good"
    with pytest.raises(ValueError, match="no column 'chosen'; it has .'lose', 'win'"):
        files.read_pairs(path)
    with pytest.raises(ValueError, match="columns = 'winner'"):
        files.read_pairs(path, columns={"winner": "win"})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        files.read_pairs(tmp_path / "none.jsonl")
    for name, text, words in [
        ("a.csv", "x", "suffix '.csv'"),
        ("empty.jsonl", "", "is empty"),
        ("blank.jsonl", "\n\n", "no good row"),
        ("cut.jsonl", json.dumps(pair()) + '\n{"prompt": "sa', "cut off within line 2"),
        ("bad.jsonl", json.dumps(pair("x", "x")) + "\n", "no good row .identical_pair 1 from line 1"),
        ("bad.parquet", "PAR1 and so on", "not a whole Parquet file"),
        ("label.jsonl", json.dumps(label()) + "\n", "has no column 'chosen'"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            files.read_pairs(tmp_path / name)
    whole = save_parquet(tmp_path / "whole.parquet", [pair(), pair("x", "y")]).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        files.read_pairs(tmp_path / "cut.parquet")


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(pair()).encode() + b'\n{"chosen": "\xff", "rejected": "b"}\n')
    assert files.read_pairs(path).refused == {"not_json": files.Tally(1, 2)}
    rows = [{"chosen": b"\xff", "rejected": b"x"}]
    with pytest.raises(ValueError, match="no good row .not_text 1"):
        files.read_pairs(save_parquet(tmp_path / "a.parquet", rows))


def test_arrays(tmp_path):
    def encode(prompt, response):
        return np.array([len(prompt), len(response)], np.int32)

    rows = [pair("a", "bb", user="z", weight=0.5), pair("cc", "d", user="b", margin=0)]
    preferences, names = files.to_preferences(
        files.read_pairs(write(tmp_path / "a.jsonl", rows)), encode
    )
    assert names == ("b", "z")
    np.testing.assert_array_equal(preferences.first, [[3, 1], [3, 2]])
    np.testing.assert_array_equal(preferences.second, [[3, 2], [3, 1]])
    np.testing.assert_array_equal(preferences.target, [1.0, 0.5])
    np.testing.assert_array_equal(preferences.weights, [0.5, 1.0])
    np.testing.assert_array_equal(preferences.annotator, [1, 0])
    labels = files.read_labels(write(tmp_path / "b.jsonl", [label(), label("x", False)]))
    feedback, names = files.to_feedback(labels, encode)
    assert names == ("",) and np.isnan(feedback.propensity).all() and feedback.observed.all()
    np.testing.assert_array_equal(feedback.labels, [1.0, 0.0])
    with pytest.raises(ValueError, match="rows are Label; allowed are Pair"):
        files.to_preferences(labels, encode)
    weighted = files.read_labels(write(tmp_path / "c.jsonl", [label(weight=3)]))
    with pytest.raises(ValueError, match="line 1: weight = 3.0"):
        files.to_feedback(weighted, encode)


def test_what_a_chat_template_and_a_margin_need_is_kept(tmp_path):
    turns = chat("say", "what", "this", "good")
    first = pair(turns, [*turns[:3], {"role": "assistant", "content": "bad"}], None, margin=2)
    rows = [first, pair("fine", "poor", chat("tell")), pair("a", "b")]
    loaded = files.read_pairs(write(tmp_path / "a.jsonl", rows))
    seen = {}

    def encode(prompt, response):
        seen[response] = list(getattr(prompt, "messages", ()))
        return np.zeros(1, np.float32)

    files.to_preferences(loaded, encode)
    assert seen["bad"] == turns[:3] and seen["fine"] == chat("tell") and seen["a"] == []
    np.testing.assert_array_equal(files.margins(loaded), np.array([2, 0, 0], np.float32))
