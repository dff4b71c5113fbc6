"""Which rewards to trust for which kind of prompt (CARINOX, arXiv 2509.17458).

Each reward is scored on images that people, or a trusted judge, have scored too. Its weight for a
category is its correlation with them there.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward import masked

AS_RELEASED = {
    "color": (0.40, 1.06, 1.41, 1.14),
    "shape": (0.95, 1.12, 1.00, 0.92),
    "texture": (0.90, 1.10, 1.07, 0.93),
    "2d_spatial": (1.06, 1.02, 0.82, 1.10),
    "non_spatial": (1.01, 0.96, 0.85, 1.17),
    "complex": (0.67, 1.05, 1.21, 1.06),
    "3d_spatial": (0.96, 0.92, 0.68, 1.43),
    "numeracy": (1.02, 1.05, 1.00, 0.93),
    "overall": (0.59, 0.94, 1.12, 1.34),
    "none": (1.0, 1.0, 1.0, 1.0),
}
"""The authors' weights of HPS, ImageReward, DA-score and VQAScore by category."""

COMMAND_LINE = (5.0, 5.0, 5.0, 1.0)
"""Of the same rewards, the defaults of the authors' command line, whatever the category."""


def correlations(
    scores: Float[Array, "N M"], judged: Float[Array, "N"], category: Int[Array, "N"], categories: int
) -> Float[Array, "C M"]:
    """Pearson correlation of each reward with the judge within each category.

    Of the images that both have scored: a score that is NaN or infinite is missing, and takes no
    part in any other correlation. NaN where no images are left, or what is left does not vary.

    Args:
      scores: of every image under every reward.
      judged: score of the same images by people or by a trusted judge.
      category: of each image's prompt, in `0 .. categories - 1`.
      categories: how many there are.
    """
    known = jnp.isfinite(scores) & jnp.isfinite(judged)[:, None]
    scores = jnp.where(known, scores, 0.0)
    judged = jnp.where(jnp.isfinite(judged), judged, 0.0)
    own = category[None, :] == jnp.arange(categories)[:, None]
    member = (own[:, :, None] & known[None]).astype(jnp.float32)  # [C, N, M]
    share = member / jnp.maximum(jnp.sum(member, axis=1, keepdims=True), 1.0)
    centred = scores[None] - jnp.einsum("cnm,nm->cm", share, scores)[:, None]
    judge = judged[None, :, None] - jnp.einsum("cnm,n->cm", share, judged)[:, None]
    mean = lambda values: jnp.sum(share * values, axis=1)
    product = mean(jnp.square(centred)) * mean(jnp.square(judge))
    positive = product > 0
    root = jnp.sqrt(jnp.where(positive, product, 1.0))
    return jnp.where(positive, mean(centred * judge) / root, jnp.nan)


def category_weights(correlation: Float[Array, "*C M"]) -> Float[Array, "*C M"]:
    """`w_m = M rho_m / sum rho`: mean 1 over rewards; negative and unknown (NaN) count as 0.

    All 1 where no correlation is positive.
    """
    known = jnp.where(jnp.isnan(correlation), 0.0, jnp.maximum(correlation, 0.0))
    total = jnp.sum(known, axis=-1, keepdims=True)
    weights = known.shape[-1] * known / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, weights, jnp.ones_like(weights))


def prompt_weights(
    membership: Float[Array, "*P C"], weights: Float[Array, "C M"], *, as_released: bool = False
) -> Float[Array, "*P M"]:
    """Weights for prompts that belong to categories with the given probabilities.

    Args:
      membership: of each prompt; one that belongs to none gets 1 throughout, the authors' "none".
      weights: of the rewards by category.
      as_released: `COMMAND_LINE` for every prompt: the authors' optimisation does not read their
        table.

    Raises:
      ValueError: `as_released` with other than four rewards.
    """
    if not as_released:
        known = jnp.any(membership > 0, axis=-1, keepdims=True)
        return jnp.where(known, membership @ weights, 1.0)
    count = weights.shape[1]
    if count != len(COMMAND_LINE):
        raise ValueError(f"as_released with {count} rewards; allowed are {len(COMMAND_LINE)}")
    return jnp.broadcast_to(jnp.asarray(COMMAND_LINE), (*membership.shape[:-1], count))


def strongest(correlation: Float[Array, "C M"], count: int) -> Int[Array, "count"]:
    """The `count` rewards with the largest mean correlation over the categories where it is known.

    Raises:
      ValueError: `count` is not in `1 .. M`.
    """
    if not 1 <= count <= correlation.shape[1]:
        raise ValueError(f"count = {count}; allowed is 1 to {correlation.shape[1]}")
    known = ~jnp.isnan(correlation)
    mean = masked.mean(correlation, known, axis=0)
    ranked = jnp.argsort(-jnp.where(jnp.any(known, axis=0), mean, -jnp.inf))
    return ranked[:count].astype(jnp.int32)
