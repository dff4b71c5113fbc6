"""The audit from the command line: reading logs, refusing bad ones, what it writes."""

import datetime
import json
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import audit, audit_log, audit_synthetic


def records(count=40, group=4):
    """A small plausible log of TRL's kind."""
    log = audit_synthetic.generate("constant", prompts=count, group_size=group)
    return [
        {"prompt_id": r["prompt"], "reward": r["accuracy_reward"], "recheck": r["recheck"],
         "source": r["source"], "length": i * 1.5, "step": r["step"], "id": i % group}
        for i, r in enumerate(audit_synthetic.records(log))
    ]


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text)
    return path


def run(tmp_path, *arguments):
    return audit.main([*map(str, arguments), "--out", str(tmp_path / "out")])


def result(tmp_path):
    return json.loads((tmp_path / "out" / "audit.json").read_text())


def test_synthetic_writes_reports_and_shows_the_truth(tmp_path, capsys):
    assert run(tmp_path, "--synthetic") == 0
    printed = capsys.readouterr()
    assert "Truth beside estimate" in printed.out and printed.err == ""
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"rollouts.jsonl", "audit.md", "audit.json", "audit.png"}
    text = (tmp_path / "out" / "audit.md").read_text()
    assert text in printed.out
    data = result(tmp_path)
    for name in ("false_positive", "false_negative"):
        assert abs(data["rates"][name]["estimate"] - data["truth"][name]) < 0.04
    assert data["advice"]["code"] == "correct_by_prompt"
    assert (tmp_path / "out" / "audit.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_jsonl_and_parquet_agree(tmp_path):
    rows = records()
    features = ["--features", "source,length"]
    assert run(tmp_path, "--rollouts", write(tmp_path / "a.jsonl", rows), *features) == 0
    first = result(tmp_path)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert run(tmp_path, "--rollouts", tmp_path / "a.parquet", *features) == 0
    second = result(tmp_path)
    first.pop("left_out"), second.pop("left_out")
    assert first == second
    assert list(first["features"]["length"]["values"]) == [
        "0 to 47.7", "47.7 to 95.4", "95.4 to 143.1", "143.1 to 190.8", "190.8 to 238.5"]


def test_columns_groups_and_nested_names(tmp_path):
    rows = [
        {"input": [{"role": "user", "content": r["prompt_id"]}], "step": r["id"] // 2,
         "scores": {"rule": r["reward"], "judge": r["recheck"]}}
        for r in records()
    ]
    columns = "prompt_id=input,reward=scores.rule,recheck=scores.judge,group=step"
    path = write(tmp_path / "a.jsonl", rows)
    assert run(tmp_path, "--rollouts", path, "--columns", columns) == 0
    log = result(tmp_path)["log"]
    assert (log["prompts"], log["groups"], log["group_size"]["max"]) == (40, 80, 2)
    assert log["rechecked"] == sum(r["recheck"] is not None for r in records())
    for row in rows:  # what JSON does not know, and a struct
        row["input"] = {"at": datetime.date(2020, 1, 1), "id": [row["input"][0]["content"].encode()]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert run(tmp_path, "--rollouts", tmp_path / "a.parquet", "--columns", columns) == 0
    assert result(tmp_path)["log"] == log


def test_missing_rewards_are_left_out_and_counted(tmp_path, capsys):
    rows = records()
    clean = write(tmp_path / "clean.jsonl", rows)
    assert run(tmp_path, "--rollouts", clean) == 0
    expected = result(tmp_path)
    extra = [
        {**rows[0], "reward": None}, {**rows[1], "reward": float("nan")},
        {**rows[2], "reward": float("inf")}, {**rows[3], "prompt_id": None}, {"step": 1},
    ]
    assert run(tmp_path, "--rollouts", write(tmp_path / "dirty.jsonl", extra + rows)) == 0
    found = result(tmp_path)
    assert found["left_out"]["no_reward"] == 3
    assert found["left_out"]["not_finite"] == found["left_out"]["no_prompt"] == 1
    for key in ("rates", "groups", "log"):
        assert found[key] == expected[key]
    assert "left out: 3 without a reward" in capsys.readouterr().out


def test_duplicates_are_counted_and_dropped_where_they_can_be_told(tmp_path):
    rows = records()
    path = write(tmp_path / "a.jsonl", rows + rows[:7])
    assert run(tmp_path, "--rollouts", path, "--columns", "rollout_id=id") == 0
    found = result(tmp_path)
    assert found["left_out"]["repeated_rollouts"] == found["left_out"]["identical_records"] == 7
    assert found["log"]["rollouts"] == len(rows)
    assert run(tmp_path, "--rollouts", path) == 0  # without ids a repeat may be chance
    assert result(tmp_path)["log"]["rollouts"] == len(rows) + 7


def test_missing_and_outsized_values_of_any_column(tmp_path, capsys):
    rows = records()
    nothing = float("nan")
    odd = [
        {**row, "length": nothing if i % 3 == 0 else row["length"], "source": "\u65e5\u672c"}
        for i, row in enumerate(rows)
    ]
    extra = [{**rows[0], "reward": 10**400}, {**rows[1], "prompt_id": nothing}]
    path = write(tmp_path / "a.jsonl", odd + extra)
    assert run(tmp_path, "--rollouts", path, "--features", "length,source") == 0
    found = result(tmp_path)
    assert found["left_out"]["not_finite"] == found["left_out"]["no_prompt"] == 1
    lengths = list(found["features"]["length"]["values"])
    assert len(lengths) == audit_log.QUANTILES + 1 and lengths[-1] == "missing"
    assert capsys.readouterr().err == ""


def test_decimal_rewards_are_numbers(tmp_path):
    rows = records()
    assert run(tmp_path, "--rollouts", write(tmp_path / "a.jsonl", rows)) == 0
    expected = result(tmp_path)
    exact = [{**row, "reward": Decimal(row["reward"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(exact), tmp_path / "a.parquet")
    assert run(tmp_path, "--rollouts", tmp_path / "a.parquet") == 0
    assert result(tmp_path)["rates"] == expected["rates"]


def test_threshold_binarizes_graded_rewards(tmp_path):
    rows = records()
    graded = [{**r, "reward": 0.3 + 0.5 * r["reward"]} for r in rows]
    assert run(tmp_path, "--rollouts", write(tmp_path / "b.jsonl", rows)) == 0
    expected = result(tmp_path)
    path = write(tmp_path / "a.jsonl", graded)
    assert run(tmp_path, "--rollouts", path, "--threshold", "0.8") == 0
    assert result(tmp_path)["rates"] == expected["rates"]


def test_log_of_rechecked_rollouts_only(tmp_path):
    log = audit_synthetic.generate("constant", prompts=3000)
    rng = np.random.default_rng(0)
    rows = []
    for row in audit_synthetic.records(log):
        if row["recheck"] is not None and rng.random() < (0.25 if row["accuracy_reward"] else 1):
            rows.append({"prompt_id": row["prompt"], "reward": row["accuracy_reward"],
                         "recheck": row["recheck"]})
    path = write(tmp_path / "a.jsonl", rows)
    shares = ["--positive-share", "0.03", "--negative-share", "0.12"]
    assert run(tmp_path, "--rollouts", path, *shares) == 0
    found = result(tmp_path)
    for name, truth in (("false_positive", 0.1), ("false_negative", 0.2)):
        entry = found["rates"][name]
        assert entry["low"] - 0.02 < truth < entry["high"] + 0.02
    assert found["groups"] is None and found["bounds"] is None
    assert run(tmp_path, "--rollouts", path) == 0  # taken for the whole run it misleads
    wrong = result(tmp_path)["rates"]["false_positive"]["estimate"]
    assert wrong < 0.6 * found["rates"]["false_positive"]["estimate"]


def test_labels_of_features():
    codes = np.arange(60)
    numeric = audit_log.bucketed(codes, [float(x) for x in range(59)] + [None])
    assert numeric[1][-1] == "missing" and len(numeric[1]) == audit_log.QUANTILES + 1
    assert np.bincount(numeric[0]).tolist() == [12, 12, 11, 12, 12, 1]
    names = [f"n{i:02d}" for i in range(60)]
    weighted = np.repeat(codes, np.where(codes < 20, 5, 1))
    kept = audit_log.bucketed(weighted, names)
    assert kept[1] == (*names[:20], "other") and np.bincount(kept[0])[-1] == 40
    few = audit_log.bucketed(np.array([0, 1, 2, 0]), [10, 2, None])
    assert few[1] == ("2", "10", "missing") and few[0].tolist() == [1, 0, 2, 1]
    huge = [-(10**400), 10**400, *range(60)]
    assert audit_log.bucketed(np.array([0, 1, 2]), huge[:3])[1] == tuple(map(str, sorted(huge[:3])))
    assert len(audit_log.bucketed(np.arange(62), huge)[1]) == audit_log.QUANTILES


GOOD = {"prompt_id": "a", "reward": 1}


def bad_files(path):
    """Name -> (rows or bytes, arguments, part of the message)."""
    rows = records(6)
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), table)
    parquet = table.getvalue().to_pybytes()
    return {
        "empty.jsonl": (b"", [], "is empty"),
        "blank.jsonl": (b"\n\n", [], "no column 'prompt_id'; columns there: none"),
        "log.csv": (b"a,b\n", [], "suffix '.csv'"),
        "malformed.jsonl": ([*rows[:3], '{"prompt_id": 1, "rew'], [], "line 4 is not valid JSON"),
        "latin.jsonl": (b'{"prompt_id": "\xe9"}\n', [], "line 1 is not valid JSON"),
        "list.jsonl": ([*rows[:2], "[1, 2]"], [], "line 3 holds a list"),
        "no_reward.jsonl": ([{"prompt_id": 1, "score": 1}], [],
                            "no column 'reward'; columns there: prompt_id, score"),
        "no_feature.jsonl": (rows, ["--features", "colour"], "no column 'colour'"),
        "no_recheck.jsonl": ([GOOD] * 3, ["--columns", "recheck=judge"], "no column 'judge'"),
        "text.jsonl": ([GOOD, {"prompt_id": "a", "reward": "yes"}], [],
                       "line 2: reward = 'yes' is not a number"),
        "graded.jsonl": ([GOOD, {"prompt_id": "a", "reward": 0.25}], [],
                         "line 2: reward = 0.25 is neither 0 nor 1; pass --threshold"),
        "recheck.jsonl": ([{**GOOD, "recheck": 0.5}], [], "recheck has values other than 0 and 1"),
        "null.jsonl": ([{"prompt_id": 1, "reward": None}], [], "no rollout with a reward"),
        "one_verdict.jsonl": ([GOOD] * 4, [], "all 4 observed rewards are 1"),
        "single.jsonl": ([{"prompt_id": i, "reward": i % 2} for i in range(4)], [],
                         "single rollout"),
        "inclusion.jsonl": ([{**row, "recheck": 1, "p": 0} for row in rows],
                            ["--columns", "inclusion=p"], "inclusion probability 0.0"),
        "truncated.parquet": (parquet[: len(parquet) // 2], [], "not a whole parquet file"),
        "torn.parquet": (parquet[:40] + parquet[400:], [], "not a whole parquet file"),
        "columns.parquet": (parquet, ["--columns", "reward=score"], "no column 'score'"),
        "struct.parquet": (parquet, ["--columns", "reward=reward.x"], "no column 'reward.x'"),
        "share.jsonl": (rows, ["--positive-share", "0.9", "--negative-share", "0.9"],
                        "-share = 0.9, but"),
    }


@pytest.mark.parametrize("name", bad_files(None))
def test_bad_files_end_in_one_line(tmp_path, capsys, name):
    content, arguments, message = bad_files(tmp_path)[name]
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    assert run(tmp_path, "--rollouts", path, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "either --rollouts=FILE or --synthetic"),
        (["--rollouts", "no/such.jsonl"], "no/such.jsonl does not exist"),
        (["--rollouts", "."], "is a directory"),
        (["--synthetic=strange"], "allowed are prompt, constant"),
        (["--synthetic", "--confidence", "1.2"], "--confidence = 1.2; allowed is [0.5, 1)"),
        (["--synthetic", "--confidence", "nan"], "--confidence = nan"),
        (["--synthetic", "--half-width", "0"], "--half-width = 0"),
        (["--synthetic", "--positive-share", "1.5"], "--positive-share = 1.5"),
        (["--synthetic", "--positive-share", "0.5"], "only work together"),
        (["--synthetic", "--columns", "prompt=x"], "'prompt=x'"),
        (["--synthetic", "--columns", "reward=x,reward=y"], "names 'reward' twice"),
        (["--synthetic", "--threshold", "nan"], "--threshold = nan"),
        (["--synthetic", "--confidense", "0.9"], "--confidense"),
        (["--synthetic", "--seed", "x"], "--seed"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert run(tmp_path, "--synthetic") == 2
    assert "is not a directory" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_bad_input_is_refused_before_jax_is_imported(tmp_path):
    path = write(tmp_path / "a.jsonl", [GOOD, "{"])
    code = (
        "import sys; from experiments import audit; "
        f"code = audit.main(['--rollouts', {str(path)!r}]); "
        "sys.exit(99 if 'jax' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "line 2" in done.stderr
