"""The results table: every figure comes from a summary that its command repeats."""

import json

import pytest

from experiments import results_table
from jaxreward.training import config as config_lib
from jaxreward.training import report

METHOD = '''"""Corrects the rewards | of a toy.

Paper: none. Two cores, one second:
`python -m experiments.toy --config=configs/toy.py \\\\
    --workdir=runs/toy`
"""
import ml_collections

def get_config(arg=""):
    steps = {"": 10, "smoke": 1, "full": 100, "hard_one": 30}[arg]
    return ml_collections.ConfigDict({"steps": steps})
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.py").write_text(METHOD)
    (tmp_path / "README.md").write_text(
        f"# Title\n{results_table.BEGIN}\nold\n{results_table.END}\nThe end\n"
    )
    return tmp_path


def write_run(folder, name, spec="configs/toy.py", gain=0.1, method="toy"):
    config = config_lib.override(config_lib.load_config(spec), {})
    results = report.summarize(
        {"new": {"reward": [gain, gain + 0.01]}, "old": {"reward": [0.0, 0.0]}}
    )
    claims = [
        report.claim(results, "new beats old", "new", "old", "reward"),
        report.claim(results, "old beats new", "old", "new", "reward"),
    ]
    (folder / name).mkdir(parents=True)
    summary = report.make_summary(config, method, [0, 1], results, claims)
    return report.write_summary(folder / name, summary)


def readme(folder):
    return (folder / "README.md").read_text()


def whole(folder):
    return (folder / "all.md").read_text()


def test_the_table_is_written_from_the_summary(folder, capsys):
    write_run(folder, "runs/a/toy")
    results_table.main(["runs", "--readme=README.md", "--table=all.md"])
    command = "`python -m experiments.toy --config=configs/toy.py --workdir=runs/toy`"
    assert readme(folder).splitlines() == [
        "# Title",
        results_table.BEGIN,
        "| method | what it adds | claims that hold | command |",
        "|---|---|---|---|",
        f"| `toy` | Corrects the rewards \\| of a toy. | 1 of 2 | {command} |",
        results_table.END,
        "The end",
    ]
    assert (folder / "all.md").read_text().splitlines()[2:] == [
        "| method | what it adds | claim | difference [95%] | holds | command |",
        "|---|---|---|---|---|---|",
        "| `toy` | Corrects the rewards \\| of a toy. | new beats old | "
        f"reward: 0.105 [0.041, 0.169] | yes | {command} |",
        "|  |  | old beats new | reward: -0.105 [-0.169, -0.041] | no |  |",
    ]
    out = capsys.readouterr().out
    assert "toy  (2 seeds, cpu" in out and "new  0.105 [0.041, 0.169]" in out
    first = readme(folder)
    results_table.main(["runs", "--readme=README.md"])
    assert readme(folder) == first


def test_only_what_the_command_repeats_is_published(folder, capsys):
    write_run(folder, "runs/smoke", "configs/toy.py:smoke", gain=7.0)
    before = readme(folder)
    with pytest.raises(SystemExit) as caught:
        results_table.main(["runs", "--readme=README.md"])
    assert caught.value.code == 2 and readme(folder) == before
    assert "holds no summary of a config in configs as it is now" in capsys.readouterr().err
    write_run(folder, "runs/full", "configs/toy.py:full", gain=3.0)
    write_run(folder, "runs/other", gain=5.0, method="not_there")
    results_table.main(["runs", "--readme=README.md", "--table=all.md"])
    assert "3.005 [" in whole(folder) and "7.005 [" not in whole(folder)
    assert "5.005 [" not in whole(folder)
    assert "--config=configs/toy.py:full" in readme(folder)
    (folder / "configs" / "toy.py").write_text(METHOD.replace("100", "200"))
    with pytest.raises(SystemExit):
        results_table.main(["runs", "--readme=README.md"])


def test_a_variant_has_a_row_of_its_own(folder):
    write_run(folder, "runs/plain")
    write_run(folder, "runs/hard", "configs/toy.py:hard_one", gain=6.0, method="toy_hard_one")
    write_run(folder, "runs/wrong", gain=8.0, method="toy_hard_one")
    results_table.main(["runs", "--readme=README.md", "--table=all.md", "--store=kept"])
    assert "--config=configs/toy.py:hard_one" in readme(folder)
    assert "`toy`" in readme(folder) and "`toy_hard_one`" in readme(folder)
    assert "6.005 [" in whole(folder) and "8.005 [" not in whole(folder)
    kept = sorted(path.name for path in (folder / "kept").iterdir())
    assert kept == ["toy.json", "toy_hard_one.json"]


def test_the_store_keeps_methods_that_were_not_run_again(folder):
    write_run(folder, "runs/toy", gain=1.0)
    (folder / "configs" / "other.py").write_text(METHOD.replace("toy", "other"))
    write_run(folder, "runs/other", "configs/other.py", gain=2.0, method="other")
    results_table.main(["runs", "--store=kept", "--readme=README.md"])
    assert sorted(p.name for p in (folder / "kept").iterdir()) == ["other.json", "toy.json"]
    write_run(folder, "again/toy", gain=4.0)
    results_table.main(["again", "--store=kept", "--table=all.md"])
    assert "4.005 [" in whole(folder) and "2.005 [" in whole(folder)
    assert "1.005 [" not in whole(folder)
    kept = json.loads((folder / "kept" / "toy.json").read_text())
    assert kept["results"]["new"]["reward"]["per_seed"] == [4.0, 4.01]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "'nowhere' is not a folder"),
        ([], "RUNS_DIR = ''; allowed is one folder"),
        (["runs", "--reedme=x"], "did you mean --readme?"),
        (["runs", "--readme=configs/toy.py"], "allowed is a file with <!-- results:begin -->"),
    ],
)
def test_bad_input(folder, capsys, arguments, message):
    write_run(folder, "runs/toy")
    with pytest.raises(SystemExit) as caught:
        results_table.main(arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and message in err and err.count("\n") == 1


def test_a_torn_summary_is_left_out_with_a_word(folder, capsys):
    write_run(folder, "runs/toy")
    write_run(folder, "runs/torn").write_text('{"method": "toy"')
    results_table.main(["runs"])
    captured = capsys.readouterr()
    assert "warning: runs/torn/summary.json cannot be read as a summary" in captured.err
    assert "new beats old" in captured.out
