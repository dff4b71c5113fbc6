import hashlib
import json
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest

pytest.importorskip("reasoning_gym")

from jaxreward.tasks import datasets, procedural
from jaxreward.tasks.gsm_symbolic import Builder
from jaxreward.tasks.procedural import ProceduralSpec

SPECS = {config.name: config.spec for config in Builder.BUILDER_CONFIGS}
SIZES = (("train", 60), ("validation", 20))


@pytest.fixture(scope="module", params=list(SPECS))
def drawn(request):
    spec = SPECS[request.param]._replace(sizes=SIZES)
    return spec, procedural.make_examples(spec)


def test_examples_are_whole(drawn):
    spec, splits = drawn
    for split, size in spec.sizes:
        assert [example.id for example in splits[split]] == list(range(size))
        for example in splits[split]:
            assert Fraction(int(example.numerator), int(example.denominator)) == Fraction(
                example.answer
            )
            assert 0 <= example.prompt_type < len(procedural.prompt_type_names(spec))
            assert example.worked == example.answer and example.form == 0


def test_sums_are_right_and_their_types_too():
    spec = SPECS["long_sums"]._replace(sizes=(("train", 200),))
    for example in procedural.make_examples(spec)["train"]:
        assert re.fullmatch(r"[0-9 +-]+", example.expression)
        assert eval(example.expression) == int(example.answer)  # digits and signs only
        assert example.prompt == f"What is {example.expression}? Answer with the number only."
        kinds = set(example.expression) & {"+", "-"}
        name = procedural.OPERATORS[example.prompt_type]
        assert name == {"+": "sum", "-": "difference", "+-": "mixed"}["".join(sorted(kinds))]
        assert example.steps == len(re.findall("[+-]", example.expression)) >= 1


def test_magnitudes_of_word_problems():
    for example in procedural.make_examples(SPECS["words"]._replace(sizes=SIZES))["train"]:
        size = abs(Fraction(example.answer))
        assert example.prompt_type == (0 if size < 10 else 1 if size < 100 else 2)


def test_splits_share_no_question(drawn):
    keys = {split: [identity(e) for e in examples] for split, examples in drawn[1].items()}
    assert all(len(set(own)) == len(own) for own in keys.values())
    assert not set(keys["train"]) & set(keys["validation"])


def identity(example):
    """The signed terms of a sum, in order of size, or the question."""
    terms = re.findall(r"[+-]\d+", "+" + example.expression.replace(" ", ""))
    return tuple(sorted(terms)) if example.expression else example.prompt


def test_canonical_form():
    item = lambda text: {"question": "?", "metadata": {"expression": text}}
    same = [procedural.canonical(item(text)) for text in ("5 + 8 - 3", "8 - 3 + 5")]
    assert same[0] == same[1] != procedural.canonical(item("3 + 8 - 5"))
    assert procedural.canonical(item("2 * 3")) == "?"


def test_the_same_in_another_process():
    script = (
        "import json; from jaxreward.tasks import procedural as p;"
        "from jaxreward.tasks.gsm_symbolic import Builder;"
        "print(json.dumps([p.make_examples(c.spec._replace(sizes=(('train', 60), "
        "('validation', 20)))) for c in Builder.BUILDER_CONFIGS]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True)
    here = [procedural.make_examples(spec._replace(sizes=SIZES)) for spec in SPECS.values()]
    assert json.loads(done.stdout) == json.loads(json.dumps(here))
    other = procedural.make_examples(SPECS["sums"]._replace(sizes=SIZES, seed=1))
    digest = lambda splits: hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    assert digest(other) != digest(here[list(SPECS).index("sums")])


def test_through_the_builder(tmp_path):
    made = datasets.prepare("gsm_symbolic", tmp_path, SPECS["sums"]._replace(sizes=SIZES))
    expected = procedural.make_examples(SPECS["sums"]._replace(sizes=SIZES))
    for split, _ in SIZES:
        assert datasets.read(made, split) == expected[split]
    assert made.prompt_types == procedural.OPERATORS


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt_type": "length"}, "prompt_type = 'length'"),
        ({"template": "Solve!"}, "template = 'Solve!'; needed"),
        ({"template": "{questions}"}, "template = '{questions}'"),
        ({"family": "no_such"}, "family, options = 'no_such'"),
        ({"options": (("min_terms", 0),)}, "reasoning-gym refuses"),
        ({"options": (("colour", 1),)}, "reasoning-gym refuses"),
        ({"sizes": (("train", 0),)}, r"sizes\['train'\] = 0"),
        ({"sizes": (("train", 5000),)}, r"sizes\['train'\] = 5000; allowed are at most"),
    ],
)
def test_impossible_specs(change, message):
    with pytest.raises(ValueError, match=message):
        procedural.make_examples(SPECS["sums"]._replace(**change))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"install jaxreward\[lm\]"):
        procedural.make_examples(ProceduralSpec())
