"""Error rates of a verifier from re-checks drawn within each verdict: closed forms.

Some rollouts that the verifier accepted, and some that it rejected, are judged again by a
trusted verifier. What is seen is P(true | verdict) for each verdict; Bayes turns it into
the rates P(verdict | true). With `q` the share accepted, `c` the share of the accepted that
is right and `o` the share of the rejected that is right,

    success_rate   = q c + (1 - q) o
    false_positive = q (1 - c) / (q (1 - c) + (1 - q) (1 - o))
    false_negative = (1 - q) o / (q c + (1 - q) o)

The draw may have any probability within a verdict (missing at random given the verdict).
On the logit scale both rates are sums, which gives the variances by the delta method.

Every function takes numpy or jax arrays of any shape, elementwise, and is free of Python
branches on values, so it also runs under `jit` and `vmap`.
"""

from typing import Any, NamedTuple

Numbers = Any
"""A numpy or jax array, of one shape within a call."""


class Rechecks(NamedTuple):
    """Counts of rollouts; floats, so that weighted or decayed counts are allowed.

    Attributes:
      accepted: all rollouts with observed reward 1, re-checked or not.
      rejected: all rollouts with observed reward 0.
      accepted_right: re-checked, observed 1, true 1.
      accepted_wrong: re-checked, observed 1, true 0.
      rejected_right: re-checked, observed 0, true 1.
      rejected_wrong: re-checked, observed 0, true 0.
    """

    accepted: Numbers
    rejected: Numbers
    accepted_right: Numbers
    accepted_wrong: Numbers
    rejected_right: Numbers
    rejected_wrong: Numbers


class Shares(NamedTuple):
    """Probabilities given the verdict.

    Attributes:
      accepted: P(observed 1), `q`.
      accepted_right: P(true 1 | observed 1), `c`, the precision.
      rejected_right: P(true 1 | observed 0), `o`, the false omission rate.
    """

    accepted: Numbers
    accepted_right: Numbers
    rejected_right: Numbers


class Rates(NamedTuple):
    """Probabilities given the truth, and P(true 1)."""

    false_positive: Numbers
    false_negative: Numbers
    success_rate: Numbers

    @property
    def determinant(self):
        """Youden's J, `1 - false_positive - false_negative`."""
        return 1.0 - self.false_positive - self.false_negative


class VarianceParts(NamedTuple):
    """Variance of an estimate, `accepted / n_accepted + rejected / n_rejected + share / n`.

    `n_accepted` and `n_rejected` count re-checks, `n` all rollouts.
    """

    accepted: Numbers
    rejected: Numbers
    share: Numbers

    def total(self, n_accepted, n_rejected, n):
        """The variance at these numbers of re-checks and rollouts."""
        return self.accepted / n_accepted + self.rejected / n_rejected + self.share / n


def verdict_shares(counts: Rechecks, pseudo_count: float = 0.0) -> Shares:
    """The three shares, with `pseudo_count` added to each of the six counts.

    Without pseudo counts a share of nothing is 0 / 0; 1/2 is Jeffreys' prior.
    """
    n = [count + pseudo_count for count in counts]
    return Shares(
        accepted=n[0] / (n[0] + n[1]),
        accepted_right=n[2] / (n[2] + n[3]),
        rejected_right=n[4] / (n[4] + n[5]),
    )


def rates_from_shares(shares: Shares) -> Rates:
    """Bayes' rule: rates given the truth from shares given the verdict."""
    q, right, missed = shares
    true = q * right + (1.0 - q) * missed
    false = q * (1.0 - right) + (1.0 - q) * (1.0 - missed)
    return Rates(
        false_positive=q * (1.0 - right) / false,
        false_negative=(1.0 - q) * missed / true,
        success_rate=true,
    )


def estimate_rates(counts: Rechecks, pseudo_count: float = 0.0) -> Rates:
    """The rates' maximum likelihood estimate, or with 1/2 a finite one for any counts."""
    return rates_from_shares(verdict_shares(counts, pseudo_count))


def rate_slopes(shares: Shares) -> dict[str, Shares]:
    """Derivatives of `false_positive`, `false_negative` and `determinant` by each share."""
    q, right, missed = shares
    rates = rates_from_shares(shares)
    positive = rates.false_positive * (1.0 - rates.false_positive)
    negative = rates.false_negative * (1.0 - rates.false_negative)
    spread = q * (1.0 - q)
    slopes = {
        "false_positive": Shares(
            positive / spread, -positive / (1.0 - right), positive / (1.0 - missed)
        ),
        "false_negative": Shares(-negative / spread, -negative / right, negative / missed),
    }
    slopes["determinant"] = Shares(*(-(a + b) for a, b in zip(*slopes.values())))
    return slopes


def variance_parts(shares: Shares) -> dict[str, VarianceParts]:
    """Delta-method variances of `false_positive`, `false_negative` and `determinant`.

    For rollouts independent of each other; multiply by a design effect otherwise. Shares
    must be inside (0, 1): use a pseudo count.
    """
    spread = Shares(*(share * (1.0 - share) for share in shares))
    return {
        name: VarianceParts(
            accepted=slope.accepted_right**2 * spread.accepted_right,
            rejected=slope.rejected_right**2 * spread.rejected_right,
            share=slope.accepted**2 * spread.accepted,
        )
        for name, slope in rate_slopes(shares).items()
    }


def rate_intervals(
    counts: Rechecks, z: float = 1.959964, design_effect: Numbers = 1.0
) -> dict[str, tuple[Numbers, Numbers]]:
    """Closed-form intervals `{name: (low, high)}` of the two rates.

    Symmetric on the logit scale around the estimate with pseudo count 1/2. A rate none of
    whose errors was seen has lower limit 0, one with nothing but errors upper limit 1.
    Coverage is nominal within one point from 50 re-checks of each verdict; of the misses
    most have the rate below the interval.

    Args:
      counts: re-check counts; a verdict never re-checked gives a nearly empty statement.
      z: standard normal quantile, 1.959964 for 95%.
      design_effect: variance of the estimates relative to independent rollouts.
    """
    shares = verdict_shares(counts, 0.5)
    rates, parts = rates_from_shares(shares), variance_parts(shares)
    n_accepted = counts.accepted_right + counts.accepted_wrong + 1.0
    n_rejected = counts.rejected_right + counts.rejected_wrong + 1.0
    n = counts.accepted + counts.rejected + 1.0
    xp = n.__array_namespace__()
    seen = {
        "false_positive": (counts.accepted_wrong, counts.rejected_wrong),
        "false_negative": (counts.rejected_right, counts.accepted_right),
    }
    result = {}
    for name, (errors, successes) in seen.items():
        rate = getattr(rates, name)
        scale = rate * (1.0 - rate)
        variance = parts[name].total(n_accepted, n_rejected, n) * design_effect
        factor = xp.exp(z * variance**0.5 / scale)
        low, high = rate / (rate + (1.0 - rate) * factor), rate / (rate + (1.0 - rate) / factor)
        result[name] = xp.where(errors > 0, low, 0.0), xp.where(successes > 0, high, 1.0)
    return result
