"""Canvases of two 8x8 cells with handwritten digits, and prompts that say what is on them.

A prompt is `(category, first, second, option)`, int32:

- both: a digit and another, in any order;
- relation: the first left (option 0) or right (1) of the second;
- count: one (0) or two (1) of the first, and nothing else;
- size: one of the first, big (0) or small (1), and nothing else.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxreward.rewards.images import BLANK, CELL_LABELS, DIGITS, SIDE, cell_label

CATEGORIES = ("both", "relation", "count", "size")
BOTH, RELATION, COUNT, SIZE = range(4)

WORDS = (*map(str, range(10)), "and", "left of", "right of", "one", "two", "big", "small", "nothing")
"""Vocabulary of `tokens`."""

SOURCES = ("sklearn", "mnist")
PARTS = {"train": (0.0, 0.5), "reward": (0.5, 0.8), "judge": (0.8, 1.0)}
"""Which share of the real digits generator, rewards and trusted judge learn from."""


class Bank(NamedTuple):
    """Real digits to draw canvases from.

    Attributes:
      images: pixels in [0, 1].
      labels: int32 digit.
      by_digit: positions of the images of every digit, each list repeated to the same length.
    """

    images: Float[Array, "N 8 8"]
    labels: Int[Array, "N"]
    by_digit: Int[Array, "10 M"]


def load_bank(part: str, *, source: str = "sklearn", data_dir: str | None = None) -> Bank:
    """Real digits of one part; the parts share no image.

    Args:
      part: "train", "reward" or "judge".
      source: "sklearn", the 1,797 digits that come with scikit-learn; "mnist", through
        tensorflow-datasets, cropped and averaged to 8x8.
      data_dir: where tensorflow-datasets keeps MNIST.

    Raises:
      ValueError: an unknown part or source.
      OSError: MNIST is neither there nor can it be downloaded.
    """
    for name, value, allowed in (("part", part, PARTS), ("source", source, SOURCES)):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}; allowed are {', '.join(allowed)}")
    images, labels = _mnist(data_dir) if source == "mnist" else _sklearn()
    order = np.random.default_rng(0).permutation(len(labels))
    low, high = (round(share * len(labels)) for share in PARTS[part])
    return make_bank(images[order[low:high]], labels[order[low:high]])


def make_bank(images: Any, labels: Any) -> Bank:
    """A bank of `[N, 8, 8]` images in [0, 1] with digits `[N]`, each digit at least once.

    Raises:
      ValueError: other shapes, or a digit that does not occur.
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels, np.int32)
    if images.shape != (len(labels), SIDE, SIDE):
        raise ValueError(f"images have shape {images.shape}; allowed is {(len(labels), SIDE, SIDE)}")
    counts = np.bincount(labels, minlength=DIGITS)
    if counts.shape != (DIGITS,) or not counts.all():
        raise ValueError(f"labels occur {counts.tolist()} times; allowed is every digit of 0..9")
    by_digit = [np.resize(np.flatnonzero(labels == d), counts.max()) for d in range(DIGITS)]
    return Bank(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(np.stack(by_digit), jnp.int32))


def _sklearn() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    return digits.images / 16.0, digits.target


def _mnist(data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds  # slow to import

    try:
        builder = tfds.builder("mnist", data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        rows = list(builder.as_data_source(split="train"))
    except Exception as error:
        raise OSError(
            f"MNIST is not in {data_dir or 'the default data_dir'} and cannot be downloaded "
            f"({type(error).__name__}); allowed here is source = 'sklearn'"
        ) from error
    images = np.stack([shrink(row["image"][..., 0]) for row in rows])
    return images, np.array([row["label"] for row in rows])


def shrink(image: np.ndarray) -> np.ndarray:
    """A 28x28 image of bytes as 8x8 in [0, 1]: means of 3x3 pixels of the inner 24x24."""
    inner = np.asarray(image, np.float32)[2:26, 2:26] / 255.0
    return inner.reshape(SIDE, 3, SIDE, 3).mean(axis=(1, 3))


def draw_prompts(
    key: jax.Array, count: int, categories: tuple[int, ...] = (BOTH, RELATION, COUNT, SIZE)
) -> Int[Array, "count 4"]:
    """Random prompts: categories and digits uniform; the two digits of a pair differ."""
    keys = jax.random.split(key, 4)
    category = jax.random.choice(keys[0], jnp.asarray(categories, jnp.int32), (count,))
    first = jax.random.randint(keys[1], (count,), 0, DIGITS)
    second = (first + jax.random.randint(keys[2], (count,), 1, DIGITS)) % DIGITS
    second = jnp.where(category <= RELATION, second, first)
    option = jax.random.randint(keys[3], (count,), 0, 2)
    option = jnp.where(category == BOTH, 0, option)
    return jnp.stack([category, first, second, option], axis=1).astype(jnp.int32)


def all_prompts() -> Int[np.ndarray, "N 4"]:
    """Every prompt once, by category: 90 of both, 180 relations, 20 counts and 20 sizes."""
    pairs = [(a, b) for a in range(DIGITS) for b in range(DIGITS) if a != b]
    rows = [(BOTH, a, b, 0) for a, b in pairs]
    rows += [(RELATION, a, b, option) for a, b in pairs for option in (0, 1)]
    rows += [(c, a, a, option) for c in (COUNT, SIZE) for a in range(DIGITS) for option in (0, 1)]
    return np.asarray(rows, np.int32)


def is_held_out(prompts: Int[np.ndarray, "*N 4"]) -> Bool[np.ndarray, "*N"]:
    """A fifth of each category, for tests of combinations that training never showed.

    Of pairs those whose digits sum to a multiple of 5, in whatever order and relation; of a
    single digit `d` those whose `d % 5` is 0 (one), 1 (two), 2 (big) or 3 (small). Every digit and
    every word stands in other prompts too.
    """
    category, first, second, option = np.moveaxis(np.asarray(prompts), -1, 0)
    single = first % 5 == 2 * (category - COUNT) + option
    return np.where(category <= RELATION, (first + second) % 5 == 0, single)


def draw_balanced(
    key: jax.Array, table: Int[np.ndarray, "N 4"], count: int
) -> Int[Array, "count 4"]:
    """Random rows of a table of prompts: its categories in turn, uniform within each."""
    table = np.asarray(table)
    kinds = np.unique(table[:, 0])
    sizes = np.asarray([np.sum(table[:, 0] == kind) for kind in kinds])
    widest = max(sizes)
    rows = np.stack([np.resize(table[table[:, 0] == k], (widest, 4)) for k in kinds])
    turn = np.arange(count) % len(kinds)
    index = jax.random.randint(key, (count,), 0, jnp.asarray(sizes[turn], jnp.int32))
    return jnp.asarray(rows, jnp.int32)[turn, index]


def allowed_pairs(prompt: Int[Array, "4"]) -> Bool[Array, "K K"]:
    """Which pairs of cell labels satisfy the prompt; sizes matter only to prompts about them."""
    category, first, second, option = prompt
    label = jnp.arange(CELL_LABELS)
    digit = jnp.where(label == BLANK, -1, (label - 1) % DIGITS)
    blank = label == BLANK
    is_first, is_second = digit == first, digit == second
    ordered = is_first[:, None] & is_second[None, :]
    one = is_first[:, None] & blank[None, :]
    sized = one & ((label > DIGITS) == (option == 1))[:, None]
    tables = jnp.stack(
        [
            ordered | ordered.T,
            jnp.where(option == 0, ordered, ordered.T),
            jnp.where(option == 0, one | one.T, is_first[:, None] & is_first[None, :]),
            sized | sized.T,
        ]
    )
    return tables[category]


def draw_cells(key: jax.Array, prompt: Int[Array, "4"]) -> Int[Array, "2"]:
    """Labels of two cells that satisfy the prompt; big unless it asks for small."""
    category, first, second, option = prompt
    small = jnp.where((category == SIZE) & (option == 1), 1, 0)
    one, other = cell_label(first, small), cell_label(second, small)
    alone = (category == SIZE) | ((category == COUNT) & (option == 0))
    pair = jnp.stack([one, jnp.where(alone, BLANK, other)])
    swapped = jnp.where(category == RELATION, option == 1, jax.random.bernoulli(key))
    return jnp.where(swapped, pair[::-1], pair).astype(jnp.int32)


def draw_cell(key: jax.Array, bank: Bank, label: Int[Array, ""]) -> Float[Array, "8 8"]:
    """A cell with a random real digit of that label."""
    digit, small = (label - 1) % DIGITS, label > DIGITS
    index = bank.by_digit[digit, jax.random.randint(key, (), 0, bank.by_digit.shape[1])]
    image = bank.images[index]
    half = jnp.mean(image.reshape(SIDE // 2, 2, SIDE // 2, 2), axis=(1, 3))
    image = jnp.where(small, jnp.pad(half, SIDE // 4), image)
    return jnp.where(label == BLANK, jnp.zeros_like(image), image)


def draw_canvas(key: jax.Array, bank: Bank, prompt: Int[Array, "4"]) -> Float[Array, "8 16"]:
    """A canvas that satisfies the prompt."""
    keys = jax.random.split(key, 3)
    left, right = draw_cells(keys[0], prompt)
    return jnp.concatenate([draw_cell(keys[1], bank, left), draw_cell(keys[2], bank, right)], axis=1)


def sentence(prompt: Any) -> str:
    """The prompt in words: "a 3 left of a 7", "two 5s", "a small 4"."""
    category, first, second, option = map(int, np.asarray(prompt))
    if category == BOTH:
        return f"a {first} and a {second}"
    if category == RELATION:
        return f"a {first} {('left of', 'right of')[option]} a {second}"
    if category == COUNT:
        return f"two {first}s" if option else f"one {first}"
    return f"a {('big', 'small')[option]} {first}"


def tokens(prompt: Int[Array, "*B 4"]) -> Int[Array, "*B 3"]:
    """The prompt as three indices into `WORDS`, for networks that read prompts."""
    category, first, second, option = jnp.moveaxis(prompt, -1, 0)
    pairs = (("and", "and"), ("left of", "right of"), ("one", "two"), ("big", "small"))
    words = jnp.asarray([[WORDS.index(word) for word in pair] for pair in pairs], jnp.int32)
    last = jnp.where(category <= RELATION, second, WORDS.index("nothing"))
    return jnp.stack([first, words[category, option], last], axis=-1).astype(jnp.int32)
