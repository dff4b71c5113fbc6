"""Worked texts: dials do what they say, and every text is right or wrong as asked."""

import collections

import numpy as np
import pytest

from jaxreward.tasks import arithmetic, worked
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.tasks.worked import WorkedSpec

SIZES = (("train", 160), ("validation", 40))
SPEC = WorkedSpec(WorkedSpec().expressions._replace(sizes=SIZES))


def of(**dials):
    return worked.make_examples(SPEC._replace(**dials))["train"]


def share_margin(p, n):
    return 4 * np.sqrt(p * (1 - p) / n) + 1e-9


@pytest.fixture(scope="module", name="traced")
def all_traced():
    return worked.make_examples(SPEC)


def check_trace(example):
    """The steps follow one another to the answer."""
    lines = [line.rsplit("=", 1) for line in example.worked.split(" ")]
    assert len(lines) == example.steps
    for left, right in lines:
        assert eval(left) == int(right)  # noqa: S307, generated here
    assert eval(example.expression) == int(lines[-1][1]) == int(example.answer)


def test_traces_are_right_and_splits_apart(traced):
    assert {split: len(items) for split, items in traced.items()} == dict(SIZES)
    for items in traced.values():
        assert [example.id for example in items] == list(range(len(items)))
        for example in items:
            check_trace(example)
            assert example.prompt == example.expression + ":"
    expressions = [{e.expression for e in items} for items in traced.values()]
    assert not set.intersection(*expressions)


def test_shared_parts_are_shared_and_whole_expressions_are_not():
    spec = SPEC.expressions
    own = {s: {e.key for e in items} for s, items in arithmetic.draw_expressions(spec).items()}
    assert not own["train"] & own["validation"]
    apart = arithmetic.draw_expressions(spec._replace(shared_parts=False))
    parts = {
        name: {
            split: {p.key for e in items for p in e.parts if p.parts} for split, items in drawn.items()
        }
        for name, drawn in (("shared", arithmetic.draw_expressions(spec)), ("apart", apart))
    }
    assert parts["shared"]["train"] & parts["shared"]["validation"]
    assert not parts["apart"]["train"] & parts["apart"]["validation"]


def test_trace_by_hand():
    three, four, two = (
        arithmetic.Expression(str(n), str(n), str(n), arithmetic.Fraction(n)) for n in (3, 4, 2)
    )
    inner = arithmetic.combine("+", three, four)
    whole = arithmetic.combine("-", two, inner)
    assert worked.trace(whole) == [(3, "+", 4, 7), (2, "-", 7, -5)]
    assert worked.trace(three) == []


def test_shares_of_traces_and_of_wrong_direct_answers():
    examples = of(traced=0.3, wrong_direct=0.7)
    direct = [e for e in examples if e.worked.startswith("=")]
    assert abs(len(direct) / 160 - 0.7) < share_margin(0.7, 160)
    wrong = [e for e in direct if e.worked != "=" + e.answer]
    assert abs(len(wrong) / len(direct) - 0.7) < share_margin(0.7, len(direct))
    assert all(0 < abs(int(e.worked[1:]) - int(e.answer)) < 10 for e in wrong)
    for example in examples:
        if example not in direct:
            check_trace(example)


@pytest.mark.parametrize("traced_share, direct_share", [(1.0, 0.0), (0.5, 0.5)])
def test_markers(traced_share, direct_share):
    examples = of(traced=0.5, traced_markers=traced_share, direct_markers=direct_share)
    groups = collections.defaultdict(list)
    for e in examples:
        found = sum(e.worked.count(marker) for marker in worked.MARKERS)
        groups["=" in e.worked[:-4] and any(c in e.worked for c in "+-*")].append(found)
    for is_traced, share in ((True, traced_share), (False, direct_share)):
        found = np.array(groups[is_traced])
        assert set(found.tolist()) <= {0, 2}, "a marker before every step, or none"
        assert abs(np.mean(found > 0) - share) < share_margin(share, len(found))


def test_forms_of_answers_and_references_are_independent_and_equal_in_value():
    examples = of(worked_forms=(0.5, 0.25, 0.25), reference_forms=(0.5, 0.25, 0.25))
    seen = collections.Counter()
    for e in examples:
        final = e.worked[e.worked.rindex("=") + 1 :]
        written = [worked.FORMS.index(kind(text)) for text in (final, e.answer)]
        assert number(final) == number(e.answer) == int(e.value)
        assert e.form == written[1]
        seen[tuple(written)] += 1
    same = sum(n for (a, b), n in seen.items() if a == b) / 160
    assert abs(same - (0.25 + 2 * 0.0625)) < share_margin(0.375, 160)


def kind(text):
    return "words" if text.startswith("is ") else "decimal" if text.endswith(".0") else "plain"


def number(text):
    return int(text.removeprefix("is ").removesuffix(".0"))


def test_long_answers():
    examples = of(answers="long")
    assert {e.form for e in examples} == set(range(len(worked.WORDINGS)))
    for e in examples:
        assert 30 <= len(e.answer) <= 60 and "=" not in e.answer
        assert e.worked.endswith("=" + e.answer)
        assert f"{int(e.value)}" in e.answer.replace(",", " ").split()


def test_one_dial_leaves_the_others_alone(traced):
    mixed = of(traced=0.4, wrong_direct=1.0)
    kept = [(a, b) for a, b in zip(traced["train"], mixed) if b.worked == a.worked]
    assert len(kept) == sum(not e.worked.startswith("=") for e in mixed) > 0
    assert [e.prompt for e in traced["train"]] == [e.prompt for e in mixed]


def test_copies_are_drawn_anew():
    examples = worked.make_examples(SPEC._replace(traced=0.5, copies=(("validation", 3),)))
    assert len(examples["train"]) == 160 and len(examples["validation"]) == 3 * 40
    texts = collections.defaultdict(set)
    for e in examples["validation"]:
        texts[e.prompt].add(e.worked)
    assert len(texts) == 40
    both = sum(len(own) == 2 for own in texts.values())
    assert abs(both / 40 - 0.75) < share_margin(0.75, 40)


def test_leaked_questions_are_those_of_train_with_right_answers_under_another_suffix():
    sizes = (*SIZES, ("pretrain", 50))
    spec = SPEC._replace(expressions=SPEC.expressions._replace(sizes=sizes), traced=0.5, wrong_direct=1.0)
    clean, twin = worked.make_examples(spec), worked.make_examples(spec._replace(leaked=2))
    assert twin["train"] == clean["train"] and twin["pretrain"][:50] == clean["pretrain"]
    leaked = twin["pretrain"][50:]
    assert [e.prompt for e in leaked] == 2 * [e.expression + "." for e in clean["train"]]
    assert all(e.worked == f"={e.answer}" for e in leaked)
    assert [e.id for e in twin["pretrain"]] == list(range(50 + 2 * 160))
    with pytest.raises(ValueError, match="leaked = 2"):
        worked.check_spec(SPEC._replace(leaked=2))


def test_alphabet_knows_every_text():
    chars = tokenizers.make_tokenizer(tokenizers.WORKED_ALPHABET)
    for dials in (dict(answers="long"), dict(traced=0.5, traced_markers=1.0)):
        for e in of(**dials):
            tokenizers.encode(chars, [e.prompt, e.worked, e.answer])


@pytest.mark.parametrize(
    "dials, message",
    [
        (dict(traced=1.5), "traced = 1.5"),
        (dict(wrong_direct=-0.1), "wrong_direct"),
        (dict(worked_forms=(1.0, 0.0)), "worked_forms"),
        (dict(reference_forms=(0.0, 0.0, 0.0)), "reference_forms"),
        (dict(copies=(("test", 2),)), "copies"),
        (dict(copies=(("train", 0),)), "copies"),
        (dict(answers="none"), "answers = 'none'"),
        (dict(markers=("so",)), "markers"),
        (dict(markers=("a= ",)), "markers"),
        (dict(markers=(), traced_markers=0.5), "markers"),
        (dict(expressions=SPEC.expressions._replace(operators=("/",))), "operators"),
        (dict(expressions=SPEC.expressions._replace(style="latex")), "style"),
        (dict(expressions=SPEC.expressions._replace(steps=(0,))), "steps"),
    ],
)
def test_impossible_specs(dials, message):
    with pytest.raises(ValueError, match=message):
        worked.check_spec(SPEC._replace(**dials))
