"""Verifiers: what they accept, what they refuse, and the table of measured verdicts."""

import time
from fractions import Fraction

import pytest
import verifier_table
from hypothesis import given
from hypothesis import strategies as st

from jaxreward.rewards import verifiers
from jaxreward.rewards.pool import open_pool

TIMEOUT_S = 4.0


@pytest.mark.parametrize(
    "value, reference, reward",
    [  # the exact checks of arXiv 2507.10532's reward
        (10, 10, 1.0),
        (10.5, 10, 0.7250),
        (12, 10, 0.4000),
        (-10, 10, 0.0),
        (0.5, 0, 0.25),
        (0, 0, 1.0),
        (6490.4, 6490.42220471333, 0.988896),
        (0.3, 0.25, 0.8750),
    ],
)
def test_continuous_reward(value, reference, reward):
    assert verifiers.continuous_reward(value, reference) == pytest.approx(reward, abs=1e-6)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e6, 1e6))
def test_continuous_reward_is_a_reward(value, reference):
    reward = verifiers.continuous_reward(value, reference)
    assert 0.0 <= reward <= 1.0
    assert (reward == 1.0) == (abs(value - reference) < 1e-15) or abs(value - reference) < 1e-9


def test_continuous_reward_refuses_infinity():
    for pair in [(float("inf"), 1.0), (1.0, float("nan"))]:
        with pytest.raises(ValueError):
            verifiers.continuous_reward(*pair)


@pytest.mark.parametrize(
    "text, value",
    [
        ("12/36", "1/3"),
        (" - 12 / 36 ", "-1/3"),
        ("1/-3", "-1/3"),
        ("0.75", "3/4"),
        (".5", "1/2"),
        ("5.", "5"),
        ("+7", "7"),
        ("\u22123", "-3"),
        ("1,234,567.5", "2469135/2"),
        ("1.5e3", "1500"),
        ("2E-2", "1/50"),
        ("1e2/4e1", "5/2"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac{ 1.5 }{3}", "-1/2"),
        ("$2/3$", "2/3"),
        (r"-\frac{\frac{1}{2}}{3/4}", "-2/3"),
        ("1e400", str(10**400)),
        ("3 1/2", "7/2"),
        (" -1,002 4 / 8", "-2005/2"),
        (r"$3\frac{1}{2}$", "7/2"),
    ],
)
def test_parse_number_reads(text, value):
    assert verifiers.parse_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "-", "1/0", "1/2/3", "1 2", "1 3/2", "1 2/2", "1.5 1/2", "12,34", "1e", "1e401", "1e99999", "0x10"]
    + ["1_000", "nan", "inf", "1+1", "2**8", "\uff11", "\u0661", "--1", "5%", "x", "1" * 257]
    + ["1 1/0", r"2\frac{5}{3}", "1 1/2/3", "3 -1/2", "1/3 or 2", r"\frac{1}{}", r"\frac{1}{0}", "1j", "\ud800", "1\x002"],
)
def test_parse_number_refuses(text):
    assert verifiers.parse_number(text) is None


@given(st.fractions(max_denominator=10**6), st.integers(1, 1000))
def test_exact_rational_accepts_every_form_of_a_fraction(value, factor):
    answer = str(value)
    unreduced = f"{value.numerator * factor}/{value.denominator * factor}"
    assert verifiers.exact_rational(unreduced, answer)
    assert verifiers.exact_rational(f"so \\boxed{{{unreduced}}} it is", answer)
    assert not verifiers.exact_rational(str(value + Fraction(1, 10**9)), answer)
    assert verifiers.exact_match(unreduced, answer) == (unreduced == answer)


@given(st.integers(-(10**12), 10**12), st.integers(0, 12))
def test_exact_rational_accepts_every_decimal(digits, places):
    value = Fraction(digits, 10**places)
    decimal = f"{'-' if digits < 0 else ''}{abs(digits) // 10**places}"
    if places:
        decimal += f".{abs(digits) % 10**places:0{places}d}"
    assert verifiers.exact_rational(decimal, str(value))
    assert verifiers.exact_rational(f"{digits}e-{places}", str(value))


@given(st.text(max_size=300))
def test_pure_verifiers_answer_any_text(text):
    for verifier in (verifiers.exact_match, verifiers.exact_rational, verifiers.lenient):
        assert verifier(text, "1/3") in (True, False)
    assert 0.0 <= verifiers.closeness(text, "1/3") <= 1.0


def test_final_answer():
    boxed = verifiers.final_answer
    assert boxed(r"a \boxed{1} b \boxed{ \frac{1}{2} } c") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1} \boxed{2") == "1"
    assert boxed(r"\boxed{\boxed{3}}") == "3"
    assert boxed(" 12/36\n") == "12/36"
    assert boxed(r"} { \boxed{") == r"} { \boxed{"
    assert boxed(r"\boxed{}") == ""


@pytest.mark.parametrize("unit", [r"\boxed{", "{", "}", r"\boxed{}", "1/", "1,", "9" * 50, "$"]
    + [r"\frac{", r"\frac{1}{", r"\frac ", r"\frac{1}{2}"])
def test_pure_verifiers_are_quick_on_hostile_text(unit):
    text = unit * (100_000 // len(unit))
    begun = time.perf_counter()
    verifiers.exact_match(text, "1")
    verifiers.exact_rational(text, "1")
    verifiers.lenient(text, "x")
    verifiers.closeness(text, "1")
    assert time.perf_counter() - begun < 1.0


def test_the_two_that_err():
    assert not verifiers.exact_match("12/36", "1/3")  # false negative
    assert not verifiers.exact_match("0.5", "1/2")
    assert verifiers.lenient("1/36", "1/3")  # false positives
    assert verifiers.lenient("12 or 13", "13")
    assert not verifiers.lenient("1/4", "1/3")


def test_closeness_reads_the_number_a_response_gives():
    closeness = verifiers.closeness
    assert closeness("3/4", "0.75") == 1.0
    assert closeness("7.5e-1", "3/4") == 1.0
    assert closeness("5 + 5 = 10.5", "10") == pytest.approx(0.725, abs=1e-6)
    assert closeness(r"10.5, no \boxed{12}", "10") == pytest.approx(0.4, abs=1e-6)
    assert closeness("no number", "10") == 0.0
    assert closeness("-10", "10") == 0.0


@pytest.mark.parametrize(
    "response, value",
    [
        (r"so it is \frac{1}{2}.", "1/2"),
        (r"\boxed{x = -\dfrac{3}{4}}", "-3/4"),
        (r"\frac{\frac{1}{2}}{3} metres", "1/6"),
        ("9" + "0" * 300 + "5", None),  # not 5, nor what its last 256 digits say
        ("9" * 300 + " and then 5", "5"),
        ("1e99999", None),  # not 9
        ("7, or 1/0", None),
        ("so it is -3 1/2.", "-7/2"),
        (r"so it is 3\frac{1}{2}", "7/2"),
        ("1 2 3/4", "11/4"),
        ("7/2 1/4, 3.5 1/2", "1/2"),
        ("it is 1 3/2", None),
        ("it is 1/2/3", None),
        (r"it is \frac{1}{2}/3", None),
        ("it is 1e2/4e1", "5/2"),
    ],
)
def test_the_last_number_is_read_whole(response, value):
    found = verifiers.find_number(response)
    assert found == (None if value is None else Fraction(value))


@pytest.mark.parametrize("name", ["exact_rational", "closeness", "lenient"])
def test_an_unusable_reference_is_an_error(name):
    with pytest.raises(ValueError, match="answer"):
        getattr(verifiers, name)("1", " ")


@pytest.fixture(scope="module")
def pool():
    with open_pool(verifier_table.VERIFIERS, timeout_s=TIMEOUT_S) as pool:
        yield pool


def test_verifier_table(pool):
    assert len(verifier_table.PAIRS) >= 60
    assert len({pair[:2] for pair in verifier_table.PAIRS}) == len(verifier_table.PAIRS)
    begun = time.monotonic()
    letters = verifier_table.measure(pool)
    assert time.monotonic() - begun < 4 * TIMEOUT_S + 2  # each within 5 s: none is a stall of all
    if verifier_table.report(letters)[1]:  # a machine under load can be too slow for a long one
        letters = verifier_table.measure(pool)
    lines, differences = verifier_table.report(letters)
    print(*lines, sep="\n")
    assert differences == []
    # the two that err on purpose err, each in its own way, and the exact one does not hedge
    counts = verifier_table.confusion(letters)
    assert counts["exact_match"]["TF"] > 3 * counts["exact_match"]["FT"]
    assert counts["lenient"]["FT"] >= 10


def test_a_changed_verdict_is_reported():
    letters = [pair.stored for pair in verifier_table.PAIRS]
    assert verifier_table.report(letters)[1] == []
    letters[1] = letters[1][::-1]
    _, differences = verifier_table.report(letters)
    assert len(differences) == 1 and "12/36" in differences[0]


def test_each_hanging_pair_ends_within_five_seconds(pool):
    begun = time.monotonic()
    tower = verifier_table.PAIRS[[p.response[:8] for p in verifier_table.PAIRS].index(r"\boxed{5")]
    verdicts = pool.verify("math_verify", [tower.response], [tower.answer])
    assert time.monotonic() - begun < 5.0
    assert verdicts.causes == ("timeout",)


def test_math_verify_reads_what_the_tasks_emit(pool):
    responses = ["12/36", "0.75", "-3", r"\boxed{2/6}", "2/6", "-6/2", "5/7"]
    answers = ["1/3", "3/4", "-3", "1/3", "1/3", "-3", "7/5"]
    verdicts = pool.verify("math_verify", responses, answers)
    assert verdicts.values.tolist() == [1.0] * 6 + [0.0]


def test_math_verify_misses_where_the_reference_is_unreadable(pool):
    assert pool.verify("math_verify", ["1"], ["no answer here"]).causes == ("raised",)


def test_math_verify_of_the_last_number_is_not_fooled_by_the_question():
    assert verifiers.math_verify("4 + 2", "6")
    for response, verdict in {
        "4 + 2": False, "4 + 2 = 6": True, "The answer is 6.": True, "It is 12/2": True,
        "6, or 7": False, "six": False, "": False,
    }.items():  # fmt: skip
        assert verifiers.math_verify_number(response, "6") is verdict, response
