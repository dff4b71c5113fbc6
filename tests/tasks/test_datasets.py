import pathlib
import subprocess
import sys
import types

import pytest

from jaxreward.tasks import arithmetic, datasets
from jaxreward.tasks.arithmetic import ExpressionSpec
from jaxreward.tasks.fraction_forms import FractionSpec

SMALL = ExpressionSpec(
    steps=(1,), elements=("integer",), operators=("+",), high=9, style="compact", prefix="",
    suffix="=", sizes=(("train", 40), ("validation", 10)),
)


def test_prepared_once_and_read_back_unchanged(tmp_path):
    first = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    assert first.splits == {"train": 40, "validation": 10}
    assert first.prompt_types == ("+",) and first.forms == ("reduced",)
    wanted = arithmetic.make_examples(SMALL)
    assert {split: datasets.read(first, split) for split in first.splits} == wanted
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    assert again._replace(builder=None) == first._replace(builder=None)
    assert {p: p.stat().st_mtime_ns for p in files if "lock" not in p.name} == {
        p: t for p, t in files.items() if "lock" not in p.name
    }


def test_specs_do_not_share_a_folder(tmp_path):
    first = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    other = datasets.prepare("random_calculation", tmp_path, spec=SMALL._replace(seed=5))
    assert first.name != other.name and first.fingerprint != other.fingerprint
    assert datasets.read(first, "train") != datasets.read(other, "train")


def test_data_of_another_spec_are_refused(tmp_path):
    made = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    folder = pathlib.Path(made.builder.data_dir)
    metadata = folder / "metadata.json"
    metadata.write_text(metadata.read_text().replace('\\"seed\\": 0', '\\"seed\\": 7'))
    with pytest.raises(ValueError, match="another specification.*delete the folder"):
        datasets.prepare("random_calculation", tmp_path, spec=SMALL)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    name = datasets.prepare("random_calculation", tmp_path / "a", spec=SMALL).name
    torn = tmp_path / "b" / name / "incomplete.0AB1C2_1.0.0"
    torn.mkdir(parents=True)
    (torn / "half.array_record").write_bytes(b"half")
    made = datasets.prepare("random_calculation", tmp_path / "b", spec=SMALL)
    assert not torn.exists() and len(datasets.read(made, "train")) == 40


def test_processes_that_start_together_agree(tmp_path):
    script = (
        "import sys; from jaxreward.tasks import datasets;"
        "made = datasets.prepare('exact_fraction/tiny', sys.argv[1]);"
        "print(len(datasets.read(made, 'train')), made.fingerprint, 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    outputs = {out for out, _ in results}
    assert len(outputs) == 1
    count, _, tensorflow = outputs.pop().split()
    assert count == "72" and tensorflow == "False"
    assert not list(tmp_path.rglob("incomplete*"))


def test_a_slow_import_is_left_until_it_is_needed():
    script = (
        "import sys; from jaxreward.tasks import datasets, pipeline;"
        "print('tensorflow_datasets' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_records_are_reported(tmp_path, damage):
    made = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    (path,) = pathlib.Path(made.builder.data_dir).glob("*train*")
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(ValueError, match="'train' in .* cannot be read.*delete the folder"):
        datasets.read(made, "train")


def test_ids_must_be_positions(tmp_path, monkeypatch):
    def shifted(spec):
        return {
            split: [example._replace(id=example.id + 1) for example in items]
            for split, items in original(spec).items()
        }

    original = arithmetic.make_examples
    monkeypatch.setattr(arithmetic, "make_examples", shifted)
    made = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    with pytest.raises(ValueError, match="example 0 has id 1"):
        datasets.read(made, "train")


def test_an_empty_split_is_reported(tmp_path):
    made = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    empty = types.SimpleNamespace(data_dir="here", as_data_source=lambda split: [])
    with pytest.raises(ValueError, match="'validation' in here has 0 examples; allowed is >= 1"):
        datasets.read(made._replace(builder=empty), "validation")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("mnist/a",), "dataset = 'mnist/a'; allowed are .*exact_fraction, gsm_symbolic, preference"),
        (("random_calculation/mnist",), "config 'mnist'; allowed are digits, "),
        (("random_calculation",), "config ''; allowed"),
        (("random_calculation/digits", SMALL), "allowed is one of them"),
        (("exact_fraction", SMALL), "spec is a ExpressionSpec; allowed .* FractionSpec"),
        (("exact_fraction", FractionSpec(max_numerator=0)), "max_numerator = 0"),
        (("random_calculation", SMALL._replace(sizes=(("train", 0),))), r"sizes\['train'\] = 0"),
    ],
)
def test_bad_requests(tmp_path, arguments, message):
    dataset, *spec = arguments
    with pytest.raises(ValueError, match=message):
        datasets.prepare(dataset, tmp_path, *spec)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_no_such_split(tmp_path):
    made = datasets.prepare("random_calculation", tmp_path, spec=SMALL)
    with pytest.raises(ValueError, match="split = 'test' .*allowed are train, validation"):
        datasets.read(made, "test")
