"""Traces and their noise: the exact checks of the card, and what every dial means."""

import collections
import functools
import random

import numpy as np
import pytest

from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.tasks import traced
from jaxreward.tasks.traced import TracedSpec

SIZES = (("train", 300), ("test", 50))
SPEC = TracedSpec(style="digits", sizes=SIZES)
FEW = SPEC._replace(sizes=(("train", 60),))
INPUTS = [3, 5, 2, 9]


@functools.cache
def clean_examples():
    return traced.make_examples(SPEC)


def once(number, offset):
    return lambda i, value: value + offset if i == number else value


def numbers(lines):
    return [(line.left, line.right, line.result) for line in lines]


def test_card_check_1_addition():
    lines, answer = traced.execute(traced.add, INPUTS)
    assert numbers(lines) == [(3, 5, 8), (8, 2, 10), (10, 9, 19)] and answer == 19
    lines, answer = traced.execute(traced.add, INPUTS, once(1, 4))
    assert numbers(lines) == [(3, 5, 8), (8, 2, 14), (14, 9, 23)] and answer == 23
    spec = TracedSpec("add", 4, style="lines", noise="static", intensity=0.5, change="offset", offsets=(4,))
    draws = iter([0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.0, 0.9, 0.9, 0.9])  # the result of line 2

    class Stream(random.Random):
        def random(self):
            return next(draws)

    shown = traced.traced(spec, INPUTS, Stream())
    assert shown.lines == ("3+5=8", "8+2=14", "10+9=19") and shown.answer == 19 and shown.hit


def test_card_check_2_maximum():
    results = lambda lines: [line.result for line in lines]
    lines, answer = traced.execute(traced.largest, INPUTS, once(0, -3))
    assert results(lines) == [2, 2, 9] and answer == 9
    lines, answer = traced.execute(traced.largest, INPUTS, once(2, -3))
    assert results(lines) == [5, 5, 6] and answer == 6


def right_share(program, inputs, intensity, count, **dials):
    spec = TracedSpec(program, inputs, noise="dynamic", contamination=1.0, intensity=intensity)
    spec = spec._replace(sizes=(("train", count),), **dials)
    examples = traced.make_examples(spec)["train"]
    return np.mean([e.worked.rsplit("=", 1)[1] == e.answer for e in examples])


@pytest.mark.parametrize(
    "program, inputs, intensity, expected, dials",
    [
        ("add", 6, 0.1, 0.59049, dict(change="offset", offsets=(1, 2, 3))),
        ("add", 11, 0.1, 0.348678, dict(change="offset", offsets=(1, 2, 3))),
        ("runsum", 6, 0.1, 0.543943, {}),
        ("runsum", 6, 0.3, 0.179012, {}),
        ("runsum", 6, 0.7, 0.100108, {}),
        ("runsum", 6, 0.9, 0.1, {}),
        ("runmax", 6, 0.1, 0.712, {}),
        ("runmax", 6, 0.3, 0.383, {}),
        ("runmax", 6, 0.7, 0.149, {}),
    ],
)
def test_card_check_3_share_of_right_answers(program, inputs, intensity, expected, dials):
    count = 400
    found = right_share(program, inputs, intensity, count, **dials)
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("noise", ["static", "dynamic"])
@pytest.mark.parametrize("off", [dict(contamination=0.0), dict(intensity=0.0)])
def test_card_check_4_no_noise_is_the_clean_data_to_the_byte(noise, off):
    noisy = SPEC._replace(noise=noise, **{**dict(contamination=0.5, intensity=0.5), **off})
    assert traced.make_examples(noisy) == clean_examples()


def test_card_check_5_static_noise_leaves_answers_alone():
    base = FEW._replace(noise="static", contamination=1.0, intensity=0.3)
    clean = traced.make_examples(FEW)["train"]
    for unit in traced.UNITS:
        noisy = traced.make_examples(base._replace(unit=unit))["train"]
        assert [e.worked.rsplit("=", 1)[1] for e in noisy] == [e.answer for e in clean]
        assert any(a.worked != b.worked for a, b in zip(noisy, clean))
        assert {e.form for e in noisy} <= {0, 1}


@pytest.mark.parametrize("intensity, expected", [(0.1, 0.729), (0.3, 0.343)])
def test_card_check_5_share_of_intact_lines(intensity, expected):
    spec = TracedSpec("add", 4, style="lines", noise="static", intensity=intensity)
    rng, clean = random.Random(0), traced.traced(spec, INPUTS, None).lines
    shown = [traced.traced(spec, INPUTS, rng).lines for _ in range(500)]
    found = np.mean([a == b for lines in shown for a, b in zip(lines, clean)])
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 1500)


def test_card_check_6_sampling_of_inputs():
    rng = random.Random(0)
    by_length = traced.draw_inputs(SPEC._replace(inputs=5000, digits=5), rng)
    share = np.mean([n < 10 for n in by_length])
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 5000)
    assert collections.Counter(len(str(n)) for n in by_length).keys() == {1, 2, 3, 4, 5}
    by_size = traced.draw_inputs(SPEC._replace(inputs=5000, high=99999), rng)
    assert np.mean([n < 10 for n in by_size]) < 0.002 and max(by_size) > 90000


PLAIN = {
    "add": sum,
    "multiply": np.prod,
    "max": max,
    "median": lambda v: sorted(v)[(len(v) - 1) // 2],
    "gcd": lambda v: np.gcd.reduce(v),
    "runmax": max,
    "runsum": lambda v: sum(v) % 10,
}


@pytest.mark.parametrize("program", traced.PROGRAMS)
def test_programs_and_their_traces_are_right(program):
    spec = TracedSpec(program, 4, high=60, style="lines", sizes=(("train", 60),))
    for example in traced.make_examples(spec)["train"]:
        inputs = [int(word) for word in example.expression.split()[1:]]
        assert int(example.answer) == PLAIN[program](inputs)
        assert example.worked.endswith(f"={example.answer}")
        checks = traced.line_checks(spec, inputs, example.worked)
        assert checks == {"equal": 1.0, "consistent": 1.0}


def test_checks_of_written_lines():
    spec = TracedSpec("add", 4, style="lines")
    checks = lambda text, own=spec, inputs=INPUTS: traced.line_checks(own, inputs, text)
    assert checks("3+5=8 8+2=14 10+9=19=19") == {"equal": 2 / 3, "consistent": 2 / 3}
    assert checks("3+5=8 8+2=14 14+9=23=23") == {"equal": 1 / 3, "consistent": 2 / 3}
    assert checks("no answer") == {"equal": 0.0, "consistent": 0.0}
    digits = SPEC._replace(program="runmax", inputs=4)
    assert checks("3559=9", digits) == {"equal": 1.0, "consistent": 1.0}
    assert checks("3759=9", digits) == {"equal": 3 / 4, "consistent": 2 / 4}  # 7>5; max(7,2) is not 5
    assert checks("3779=9", digits)["consistent"] == 3 / 4
    assert checks("35599=9", digits)["consistent"] == 4 / 5
    assert checks("=9", digits) == {"equal": 0.0, "consistent": 0.0}
    for style in ("lines", "values"):  # a run without operations
        gcd = spec._replace(program="gcd", inputs=2, style=style)
        assert checks("=5", gcd, [5, 0]) == {"equal": 1.0, "consistent": 1.0}
        assert checks("5%1=0=5", gcd, [5, 0]) == {"equal": 0.0, "consistent": 0.0}


def test_what_is_kept():
    base = SPEC._replace(noise="dynamic", contamination=0.5, intensity=0.3)
    kept = {k: traced.make_examples(base._replace(keep=k))["train"] for k in traced.KEEPS}
    everything = kept["all"]
    assert len(everything) == 300 and {e.form for e in everything} == {0, 1, 2}
    for example in everything:
        right = example.worked.endswith(f"={example.answer}")
        assert (example.form == 2) == (not right)
    assert {e.form for e in kept["clean"]} == {0} and {e.form for e in kept["right"]} == {0, 1}
    assert len(kept["random"]) == len(kept["right"]) and 2 in {e.form for e in kept["random"]}
    for examples in kept.values():
        assert [e.id for e in examples] == list(range(len(examples)))


def test_the_test_split_is_clean():
    noisy = SPEC._replace(noise="dynamic", contamination=1.0, intensity=0.7)
    made = traced.make_examples(noisy)
    assert made["test"] == clean_examples()["test"]
    assert {e.form for e in made["train"]} & {2}


def test_alphabet_knows_every_text():
    chars = tokenizers.make_tokenizer(tokenizers.WORKED_ALPHABET)
    for program in traced.PROGRAMS:
        if program == "gcd":
            continue  # its remainder sign is in the larger alphabet
        spec = TracedSpec(program, style="lines", sizes=(("test", 50),))
        for e in traced.make_examples(spec)["test"]:
            tokenizers.encode(chars, [e.prompt, e.worked, e.answer])
    tokenizers.encode(tokenizers.make_tokenizer(), ["71%4=3 4%3=1 3%1=0=1"])


@pytest.mark.parametrize(
    "dials, message",
    [
        (dict(program="sort"), "program = 'sort'"),
        (dict(noise="loud"), "noise = 'loud'"),
        (dict(unit="word"), "unit"),
        (dict(contamination=1.1), "contamination = 1.1"),
        (dict(intensity=-0.1), "intensity"),
        (dict(inputs=1), "inputs = 1"),
        (dict(low=5, high=4), "low, high"),
        (dict(offsets=(0, 1)), "offsets"),
        (dict(high=10), "style = 'digits'"),
        (dict(change="offset"), "style = 'digits'"),
        (dict(program="add"), "style = 'digits'"),
    ],
)
def test_impossible_specs(dials, message):
    with pytest.raises(ValueError, match=message):
        traced.check_spec(SPEC._replace(**dials))


def test_keeping_nothing_is_refused():
    spec = FEW._replace(noise="dynamic", contamination=1.0, intensity=1.0, keep="clean")
    with pytest.raises(ValueError, match="leaves no training example"):
        traced.make_examples(spec)
