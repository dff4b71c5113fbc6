"""Preferences with a known gold reward, and every defect of real ones on a dial of its own.

Items have `A` aspects, uncorrelated, of mean 0 and variance 1. In a domain `c` the gold reward is
`w_c . aspects`, `|w_c| = 1`; an annotator `k` has the taste `v_kc`, of length 1 as well. An
annotator who is shown a pair judges

    perceived = v_kc . (aspects_first - aspects_second)
                + length_bias_k (length_first - length_second) + leaning_k + noise_k e,  e ~ N(0, 1)

A single item is a pair whose second item has nothing: its lead is that over a bar at 0, the median.
The verdict is the sign, or a tie within `tie_zone`; then it is flipped with probability `flips_k`.
Feedback is seen with a probability that rises with what the annotator felt, and comes with a
critique, the aspect that is said to decide. All dials at rest give clean labels, all observed.

Pure functions of explicit keys; the dials of a spec may be traced, so that `vmap` sweeps them.

Letters: `B` judgements, `R` items of each (2, or 1 for singles), `X` numbers of an item, `A`
aspects, `C` domains, `K` annotators.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxreward.checks import Number, check_choice, check_number
from jaxreward.tasks import preference_draws as draws
from jaxreward.types import Feedback, Preferences

ITEMS = ("vectors", "tokens")
JUDGED = ("pairs", "singles")
FEELINGS = ("strength", "liking")
SPLITS = ("train", "validation", "test")

SLOPE = 1.5
"""Of the aspects of a vector, `tanh(SLOPE x . direction)`."""


class PreferenceSpec(NamedTuple):
    """What is drawn, and the dials.

    Attributes:
      items: "vectors", standard normal, the last number a length that no gold looks at; or
        "tokens", 0 for padding, the first the domain's, then words in any order.
      judged: "pairs" or "singles".
      size: numbers of an item.
      words: of the vocabulary, tokens only.
      aspects: `A`.
      domains: `C`, equally frequent.
      annotators: `K`.
      judgements: of each pair or item, by different annotators.
      sizes: pairs or items by split, out of `SPLITS`.
      seed: of everything random.
      domain_difference: how far `w_c` is from what domains share; 0 is one gold for all.
      groups: of annotators with a common taste.
      taste: distance of the groups' tastes from the gold before they are scaled to length 1.
      taste_within: of the annotators' tastes from their group's.
      noise: standard deviation of what annotators perceive, for the gold's 1: skill is its absence.
      length_bias: what a standard deviation of length adds, for the gold's 1.
      leaning: added to the lead of what is shown first, or to a single item (leniency).
      flips: P(a verdict is turned round), whatever the lead.
      annotator_spread: in [0, 1], each annotator's own four dials above are the dial times
        `1 - spread` to `1 + spread`, of mean 1, drawn apart for each dial.
      tie_zone: perceived leads closer to 0 are ties.
      observed: P(there is feedback), on average (less where `feedback_decay` meets the bound 1).
      feedback_decay: P(feedback) of the least feeling over that of the strongest, in (0, 1].
      feeling: "strength", `tanh |lead|` by the annotator's taste; "liking", of singles only,
        `(1 + tanh lead) / 2`.
      wrong_critiques: P(another aspect is named) of right verdicts. Wrong verdicts name the aspect
        that speaks most for what they say.
    """

    items: str = "vectors"
    judged: str = "pairs"
    size: int = 16
    words: int = 32
    aspects: int = 4
    domains: int = 1
    annotators: int = 1
    judgements: int = 1
    sizes: tuple[tuple[str, int], ...] = (("train", 2000), ("validation", 500), ("test", 1000))
    seed: int = 0
    domain_difference: Number = 0.0
    groups: int = 1
    taste: Number = 0.0
    taste_within: Number = 0.0
    noise: Number = 0.0
    length_bias: Number = 0.0
    leaning: Number = 0.0
    flips: Number = 0.0
    annotator_spread: Number = 0.0
    tie_zone: Number = 0.0
    observed: Number = 1.0
    feedback_decay: Number = 1.0
    feeling: str = "strength"
    wrong_critiques: Number = 0.0


class World(NamedTuple):
    """What all splits share.

    Attributes:
      readout: directions of the aspects in a vector, `[X - 1, A]`, or what each word adds to them.
      gold: `w_c`.
      tastes: `v_kc`.
      noise, length_bias, leaning, flips: of each annotator.
    """

    readout: Float[Array, "W A"]
    gold: Float[Array, "C A"]
    tastes: Float[Array, "K C A"]
    noise: Float[Array, "K"]
    length_bias: Float[Array, "K"]
    leaning: Float[Array, "K"]
    flips: Float[Array, "K"]


class Judgements(NamedTuple):
    """Judged pairs or items with what is true of them.

    Attributes:
      items: float32 vectors or int32 tokens.
      aspects: of the items.
      gold: reward of the items, mean 0 and variance 1 over the population.
      taste: the same by the annotator's taste.
      subject: which pair or item is judged; the same for its `judgements` rows.
      domain: in [0, C).
      annotator: in [0, K).
      target: 1 for the first (or liked), 0 for the second (or not), 1/2 for a tie; NaN where there
        is no feedback.
      observed: whether there is.
      propensity: P(observed), given item and annotator.
      argument: the aspect named, -1 where there is no feedback.
      sound: the aspect that speaks most for the side that the gold prefers.
    """

    items: Shaped[Array, "B R X"]
    aspects: Float[Array, "B R A"]
    gold: Float[Array, "B R"]
    taste: Float[Array, "B R"]
    subject: Int[Array, "B"]
    domain: Int[Array, "B"]
    annotator: Int[Array, "B"]
    target: Float[Array, "B"]
    observed: Bool[Array, "B"]
    propensity: Float[Array, "B"]
    argument: Int[Array, "B"]
    sound: Int[Array, "B"]


# Specs


def check_spec(spec: PreferenceSpec) -> None:
    """Raises ValueError naming the first impossible field, its value and what is allowed."""
    check_choice("items", spec.items, ITEMS)
    check_choice("judged", spec.judged, JUDGED)
    check_choice("feeling", spec.feeling, FEELINGS if spec.judged == "singles" else FEELINGS[:1])
    for name in ("words", "aspects", "domains", "annotators", "judgements", "groups"):
        check_number(name, getattr(spec, name), lambda x: x >= 1, ">= 1")
    least = spec.aspects + 1 if spec.items == "vectors" else 3
    check_number("size", spec.size, lambda x: x >= least, f">= {least}")
    if spec.items == "tokens":
        check_number("words", spec.words, lambda x: x > spec.aspects, f"> aspects = {spec.aspects}")
    within = lambda most: (lambda x: x <= most, f"<= annotators = {most}")
    check_number("judgements", spec.judgements, *within(spec.annotators))
    check_number("groups", spec.groups, *within(spec.annotators))
    for split, size in spec.sizes:
        if split not in SPLITS or size < 1:
            raise ValueError(f"sizes = {spec.sizes}; allowed are splits {SPLITS} with >= 1 subject")
    _check_dials(spec)


def _check_dials(spec: PreferenceSpec) -> None:
    for name in ("domain_difference", "taste", "taste_within", "noise", "tie_zone"):
        check_number(name, getattr(spec, name), lambda x: (x >= 0) & (x < np.inf), ">= 0")
    for name in ("length_bias", "leaning"):
        check_number(name, getattr(spec, name), np.isfinite, "finite numbers")
    for name in ("flips", "annotator_spread", "wrong_critiques"):
        check_number(name, getattr(spec, name), lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    for name in ("observed", "feedback_decay"):
        check_number(name, getattr(spec, name), lambda x: (x > 0) & (x <= 1), "(0, 1]")
    if isinstance(spec.annotator_spread, float | int):
        most = 1 / (1 + spec.annotator_spread)
        check_number("flips", spec.flips, lambda x: x <= most, f"<= {most:g} with this spread")
    if spec.aspects == 1:
        check_number("wrong_critiques", spec.wrong_critiques, lambda x: x == 0, "0 with one aspect")


def vocabulary(spec: PreferenceSpec) -> int:
    """Number of tokens: padding, domains, words."""
    return 1 + spec.domains + spec.words


# Worlds


def make_world(key: jax.Array, spec: PreferenceSpec) -> World:
    """Draws aspects, golds and annotators.

    Raises:
      ValueError: the spec is impossible.
    """
    check_spec(spec)
    keys = jax.random.split(key, 9)
    shape = (spec.aspects,)
    common = jax.random.normal(keys[1], shape)
    own = jax.random.normal(keys[2], (spec.domains, *shape))
    gold = draws.unit(draws.unit(common)[None] + spec.domain_difference * draws.unit(own))
    groups = draws.unit(jax.random.normal(keys[3], (spec.groups, *shape)))
    shift = spec.taste * groups[jnp.arange(spec.annotators) % spec.groups]
    shift = shift + spec.taste_within * draws.own_tastes(keys[4], spec.annotators, spec.aspects)
    dials = (spec.noise, spec.length_bias, spec.leaning, spec.flips)
    each = [dial * _levels(k, spec) for k, dial in zip(keys[5:], dials)]
    readout = _directions(keys[0], spec) if spec.items == "vectors" else _words(keys[0], spec)
    return World(readout, gold, draws.unit(gold[None] + shift[:, None]), *each)


def _levels(key: jax.Array, spec: PreferenceSpec) -> Float[Array, "K"]:
    """Factors of mean 1."""
    count = spec.annotators
    even = jnp.linspace(-1.0, 1.0, count) if count > 1 else jnp.zeros(1)
    return 1.0 + spec.annotator_spread * jax.random.permutation(key, even)


def _directions(key: jax.Array, spec: PreferenceSpec) -> Float[Array, "W A"]:
    """Orthonormal, in all numbers of a vector but the last."""
    return jnp.linalg.qr(jax.random.normal(key, (spec.size - 1, spec.aspects)))[0]


def _words(key: jax.Array, spec: PreferenceSpec) -> Float[Array, "W A"]:
    """Of mean 0 and covariance 1 over the vocabulary."""
    raw = jax.random.normal(key, (spec.words, spec.aspects))
    raw = raw - jnp.mean(raw, axis=0, keepdims=True)
    factor = jnp.linalg.cholesky(raw.T @ raw / spec.words)
    return jax.scipy.linalg.solve_triangular(factor, raw.T, lower=True).T


# Items


class Drawn(NamedTuple):
    """Items with their aspects, and lengths of mean 0 and variance 1."""

    items: Shaped[Array, "B R X"]
    aspects: Float[Array, "B R A"]
    lengths: Float[Array, "B R"]


def draw_items(
    key: jax.Array, spec: PreferenceSpec, world: World, domain: Int[Array, "B"]
) -> Drawn:
    """Fresh items of given domains, independent of each other."""
    shape = (domain.shape[0], 2 if spec.judged == "pairs" else 1)
    if spec.items == "vectors":
        x = jax.random.normal(key, (*shape, spec.size))
        aspects = jnp.tanh(SLOPE * x[..., :-1] @ world.readout) / _aspect_scale()
        return Drawn(x, aspects, x[..., -1])
    of_words, of_lengths = jax.random.split(key)
    most, least = spec.size - 1, spec.size // 2
    words = jax.random.randint(of_words, (*shape, most), 0, spec.words)
    count = jax.random.randint(of_lengths, shape, least, most + 1)
    there = jnp.arange(most)[None, None] < count[..., None]
    adds = jnp.where(there[..., None], world.readout[words], 0.0)
    aspects = jnp.sum(adds, axis=2) / jnp.sqrt(count.astype(jnp.float32))[..., None]
    tokens = jnp.where(there, words + 1 + spec.domains, 0)
    first = jnp.broadcast_to((domain + 1)[:, None, None], (*shape, 1))
    lengths = count.astype(jnp.float32) - 0.5 * (least + most)
    spread = max(((most - least + 1) ** 2 - 1) / 12, 1e-6) ** 0.5
    return Drawn(jnp.concatenate([first, tokens], axis=-1), aspects, lengths / spread)


def _aspect_scale() -> float:
    """Standard deviation of `tanh(SLOPE z)`, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    return float(np.sqrt(np.sum(weights * np.tanh(SLOPE * nodes) ** 2) / np.sum(weights)))


# Judgements


def draw(key: jax.Array, spec: PreferenceSpec, world: World, count: int) -> Judgements:
    """`count` pairs or items, each judged `spec.judgements` times: `B = count * judgements`.

    Args:
      key: of the draw.
      spec: that of the world; its dials of feedback, ties and critiques are read here.
      world: of `make_world`.
      count: >= 1.
    """
    of_domain, of_items, of_annotators, of_verdicts = jax.random.split(key, 4)
    domain = jax.random.randint(of_domain, (count,), 0, spec.domains)
    drawn = draw_items(of_items, spec, world, domain)
    first = jax.random.randint(of_annotators, (count,), 0, spec.annotators)
    turn = jnp.arange(spec.judgements)
    annotator = ((first[:, None] + turn[None]) % spec.annotators).reshape(-1)
    subject = jnp.repeat(jnp.arange(count), spec.judgements)
    again = lambda x: x[subject]
    drawn, domain = Drawn(*map(again, drawn)), again(domain)
    return _judge(of_verdicts, spec, world, drawn, subject, domain, annotator)


def _judge(key, spec, world: World, drawn: Drawn, subject, domain, annotator) -> Judgements:
    of_verdicts, of_feedback, of_critiques = jax.random.split(key, 3)
    taste = jnp.einsum("bra,ba->br", drawn.aspects, world.tastes[annotator, domain])
    own = _lead(taste)
    target = _verdicts(of_verdicts, spec, world, own, _lead(drawn.lengths), annotator)
    propensity = _propensity(own, spec)
    shown, observed = draws.hide(of_feedback, target, propensity)
    parts = world.gold[domain] * _lead(drawn.aspects)
    sound, argument = _critiques(of_critiques, spec, parts, target)
    return Judgements(
        drawn.items, drawn.aspects, jnp.einsum("bra,ba->br", drawn.aspects, world.gold[domain]),
        taste, subject, domain, annotator, shown, observed,
        propensity, jnp.where(observed, argument, -1), sound,
    )  # fmt: skip


def _lead(values: Float[Array, "B R *A"]) -> Float[Array, "B *A"]:
    """Of the first item over the second, or over nothing."""
    return values[:, 0] - values[:, 1] if values.shape[1] == 2 else values[:, 0]


def _verdicts(key, spec, world: World, own, longer, annotator) -> Float[Array, "B"]:
    """1, 0, or 1/2; flips turn ties into themselves."""
    of_noise, of_flips = jax.random.split(key)
    perceived = own + world.length_bias[annotator] * longer + world.leaning[annotator]
    perceived = perceived + world.noise[annotator] * jax.random.normal(of_noise, own.shape)
    said = draws.verdict(perceived, spec.tie_zone)
    return draws.turn_round(of_flips, said, world.flips[annotator])


def _propensity(lead: Float[Array, "B"], spec: PreferenceSpec) -> Float[Array, "B"]:
    """By what the annotators felt, in [0, 1]."""
    strong = jnp.abs(lead) if spec.feeling == "strength" else lead
    feeling = jnp.tanh(strong)
    feeling = feeling if spec.feeling == "strength" else 0.5 + 0.5 * feeling
    return draws.feedback_propensity(1.0 - feeling, decay=spec.feedback_decay, mean=spec.observed)


def _critiques(key, spec, parts: Float[Array, "B A"], target) -> tuple[Array, Array]:
    """The sound aspect and the named one; `parts` are what each adds to the gold's lead."""
    true = jnp.where(jnp.sum(parts, axis=1) > 0, 1.0, -1.0)
    said = jnp.where(target == 0.5, true, jnp.sign(target - 0.5))
    speaks = lambda side: jnp.argmax(parts * side[:, None], axis=1).astype(jnp.int32)
    named = draws.another(key, speaks(said), spec.aspects, spec.wrong_critiques)
    return speaks(true), jnp.where(said == true, named, speaks(said))


def generate(spec: PreferenceSpec) -> dict[str, Judgements]:
    """The splits of a spec: one world, fresh subjects, the same annotators.

    The size of one split does not change another.

    Raises:
      ValueError: the spec is impossible.
    """
    key = jax.random.key(spec.seed)
    world = make_world(jax.random.fold_in(key, 0), spec)
    of_split = lambda split: jax.random.fold_in(key, 1 + SPLITS.index(split))
    return {split: draw(of_split(split), spec, world, size) for split, size in spec.sizes}


# For training and for judging


def to_preferences(judgements: Judgements) -> Preferences:
    """Pairs; those without feedback have weight 0.

    Raises:
      ValueError: the judgements are of single items.
    """
    _check_judged(judgements, 2, "pairs")
    items = judgements.items
    weights = judgements.observed.astype(jnp.float32)
    return Preferences(
        items[:, 0], items[:, 1], judgements.target, weights, judgements.annotator
    )


def to_feedback(judgements: Judgements) -> Feedback:
    """Single items; a tie, an item that is neither liked nor not, is not observed.

    Raises:
      ValueError: the judgements are of pairs.
    """
    _check_judged(judgements, 1, "singles")
    observed = judgements.observed & (judgements.target != 0.5)
    return Feedback(
        judgements.items[:, 0], jnp.where(observed, judgements.target, jnp.nan), observed,
        judgements.propensity, judgements.annotator,
    )  # fmt: skip


def _check_judged(judgements: Judgements, items: int, kind: str) -> None:
    if judgements.items.shape[1] != items:
        other = "singles" if items == 2 else "pairs"
        raise ValueError(f"judged = {other!r}; allowed here is {kind!r}")


def gold_target(judgements: Judgements) -> Float[Array, "B"]:
    """1 where the gold prefers the first item, or likes a single one, else 0."""
    return (_lead(judgements.gold) > 0).astype(jnp.float32)
