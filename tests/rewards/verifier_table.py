r"""Pairs of response and reference answer with a person's verdict and each verifier's.

The stored verdicts were measured (math-verify 0.9.0); the table is a regression test and an
estimate of each verifier's two error rates on awkward forms. A person accepts a response
that commits to one answer of the same exact value, in whatever form.

`measure(pool)` verifies the pairs, `confusion` counts, `report` compares with what is stored.
"""

from collections import Counter
from typing import NamedTuple

from jaxreward.rewards.pool import VerifierPool

VERIFIERS = {
    name: f"jaxreward.rewards.verifiers:{name}"
    for name in ("exact_match", "exact_rational", "lenient", "math_verify")
}
"""What to open the pool with; the order of the letters below."""


class Pair(NamedTuple):
    """`truth` is a person's verdict; `stored` one letter per verifier: True, False, Missing."""

    response: str
    answer: str
    truth: bool
    stored: str


def _pairs(truth: bool, *rows: tuple[str, str, str]) -> list[Pair]:
    return [Pair(response, answer, truth, stored) for response, answer, stored in rows]


_TOWER = r"\boxed{5^{5^{5^{5^5}}}}"
_NOT_UTF8 = b"\xff\xfe12".decode("utf-8", "surrogateescape")
_LONGEST = 100_000

PAIRS = _pairs(
    True,
    # the same value in another form
    ("1/3", "1/3", "TTTT"),
    ("12/36", "1/3", "FTFT"),
    ("-4/12", "-1/3", "FTFT"),
    ("1/-3", "-1/3", "FTFT"),
    ("(-1)/3", "-1/3", "FFFT"),
    ("- 1/3", "-1/3", "FTFF"),
    ("6/3", "2", "FTFT"),
    ("2/1", "2", "FTTT"),
    ("4/2/1", "2", "FFTT"),
    ("0.5", "1/2", "FTFT"),
    (".5", "1/2", "FTFT"),
    ("0,5", "1/2", "FFFT"),
    ("0.75", "3/4", "FTFT"),
    ("3/4", "0.75", "FTFT"),
    ("0.125000", "1/8", "FTFT"),
    ("-3", "-3", "TTTT"),
    ("\u22123", "-3", "FTFF"),
    ("+5", "5", "FTTF"),
    ("007", "7", "FTTT"),
    ("-0", "0", "FTTT"),
    ("1000.0", "1000", "FTTT"),
    ("1,000", "1000", "FTFT"),
    ("1e3", "1000", "FTFF"),
    ("1e-1", "0.1", "FTFF"),
    (" 1/3 \n", "1/3", "TTTT"),
    ("1/3.", "1/3", "FTTT"),
    # mixed numbers, per cent, units, powers, sums
    ("1 1/2", "3/2", "FTFT"),
    (r"$1\frac{1}{2}$", "3/2", "FTFT"),
    ("- 3 1/2", "-7/2", "FTFT"),
    (r"\boxed{3 4/8}", "7/2", "FTFT"),
    ("7/2", "3 1/2", "FTFT"),
    ("so it is 2 1/3", "7/3", "FFFT"),
    ("50%", "1/2", "FFFT"),
    ("5 cm", "5", "FFTT"),
    ("5cm", "5", "FFTT"),
    ("$5", "5", "FTTT"),
    ("3^2", "9", "FFFT"),
    ("1/2+1/4", "3/4", "FFFT"),
    (r"$2\times10^3$", "2000", "FFFT"),
    # said in words or LaTeX
    ("x=5", "5", "FFTT"),
    ("The answer is 1/3.", "1/3", "FFTT"),
    ("1/3 = 12/36", "1/3", "FFTT"),
    ("five", "5", "FFFF"),
    ("\uff11\uff12", "12", "FFFF"),
    (r"\boxed{1/3}", "1/3", "TTTT"),
    (r"\boxed{\frac{12}{36}}", "1/3", "FTFT"),
    (r"so \frac{1}{3}", "1/3", "FFFT"),
    (r"\boxed{\sqrt{4}}", "2", "FFFT"),
    # intervals, sets, tuples, symbols
    ("$[1,2]$", "$[1,2]$", "TMTT"),
    ("$(1,2)$", "$(1,2)$", "TMTT"),
    (r"$\{1,2\}$", r"$\{2,1\}$", "FMFT"),
    ("$x+1$", "$1+x$", "FMFT"),
) + _pairs(
    False,
    # nothing, or nothing that is an answer
    ("", "1/3", "FFFF"),
    ("   ", "0", "FFFF"),
    ("I do not know", "1/3", "FFFF"),
    ("1/0", "0", "FFTF"),
    ("1/3abc", "1/3", "FFTF"),
    ("--3", "3", "FFTF"),
    ("%s%n{0}", "0", "FFTF"),
    ("__import__('os').system('true')", "0", "FFFF"),
    ("../../etc/passwd", "2", "FFFF"),
    (_NOT_UTF8, "12", "FFTF"),
    ("\ud800", "1/3", "FFFF"),
    # another value
    ("1/36", "1/3", "FFTF"),
    ("11/3", "1/3", "FFTF"),
    ("3/1", "1/3", "FFFF"),
    ("-1/3", "1/3", "FFTF"),
    ("12", "1", "FFTF"),
    ("0.333", "1/3", "FFFF"),
    ("0.333333", "1/3", "FFFT"),
    ("0.3000001", "3/10", "FFFT"),
    ("0.30000000000000004", "3/10", "FFFT"),
    ("999999999999999999999", "1000000000000000000000", "FFFF"),
    ("50%", "50", "FFTT"),
    ("5", "50%", "FMFF"),
    ("$[1,2]$", "$[1,2)$", "FMFF"),
    ("$(1,2)$", "$[1,2]$", "FMFF"),
    ("$(2,1)$", "$(1,2)$", "FMFF"),
    ("3 1/2", "1/2", "FFTF"),
    ("3 1/2", "1", "FFTF"),
    ("3 1/2", "31/2", "FFFF"),
    (r"3\frac{1}{2}", "3/2", "FFFF"),
    ("1 3/2", "3/2", "FFTF"),
    ("so it is 2 1/3", "2", "FFTF"),
    # no commitment to one answer
    ("12 or 13", "12", "FFTF"),
    ("The answer is 12 or 13", "12", "FFTT"),
    ("The answer is 12 or 13", "13", "FFTF"),
    ("1/3 or 1/4", "1/4", "FFTT"),
    (r"\boxed{12} \boxed{13}", "12", "FFTF"),
    (r"\boxed{12} \boxed{13}", "13", "TTTF"),
    ("1 2 3 4 5 6 7 8 9", "4", "FFTF"),
    # long or endless
    (_TOWER, "1/3", "FFFM"),
    ("1" * _LONGEST, "1", "FFTF"),
    ("a" * _LONGEST, "1/3", "FFFF"),
    ("1 " * (_LONGEST // 2), "2", "FFFM"),
    (r"\boxed{" * (_LONGEST // 7), "1/3", "FFFF"),
    ("1" * (_LONGEST + 1), "1", "MMMM"),
)


def measure(pool: VerifierPool) -> list[str]:
    """The letters of every pair, by a pool opened with `VERIFIERS`."""
    columns = []
    for name in VERIFIERS:
        verdicts = pool.verify(name, [p.response for p in PAIRS], [p.answer for p in PAIRS])
        letters = ["FT"[int(value)] if ok else "M" for value, ok in zip(*verdicts[:2])]
        columns.append(letters)
    return ["".join(row) for row in zip(*columns)]


def confusion(letters: list[str]) -> dict[str, Counter]:
    """For each verifier how often a person's verdict (T, F) met its own (T, F, M)."""
    return {
        name: Counter("FT"[pair.truth] + row[i] for pair, row in zip(PAIRS, letters))
        for i, name in enumerate(VERIFIERS)
    }


def report(letters: list[str]) -> tuple[list[str], list[str]]:
    """Lines to print: the confusion matrices, and what differs from the stored table."""
    lines = [f"{'verifier':16}{'TT':>5}{'TF':>5}{'TM':>5}{'FT':>5}{'FF':>5}{'FM':>5}  FN    FP"]
    for name, n in confusion(letters).items():
        cells = "".join(f"{n[cell]:5d}" for cell in ("TT", "TF", "TM", "FT", "FF", "FM"))
        false_negative = n["TF"] / max(n["TF"] + n["TT"], 1)
        false_positive = n["FT"] / max(n["FT"] + n["FF"], 1)
        lines.append(f"{name:16}{cells}  {false_negative:.2f}  {false_positive:.2f}")
    differences = [
        f"{ascii(p.response[:40])} against {ascii(p.answer)}: {row}, stored {p.stored} "
        f"({', '.join(VERIFIERS)})"
        for p, row in zip(PAIRS, letters)
        if row != p.stored
    ]
    return lines, differences
