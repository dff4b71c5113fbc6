"""What the data set of digit canvases stores, and reading it back."""

from typing import Any, Iterator, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxreward.tasks import digit_canvases as canvases
from jaxreward.tasks.datasets import Dataset

SPLITS = tuple(canvases.PARTS)


class DigitImagesSpec(NamedTuple):
    """What canvases to draw.

    Attributes:
      categories: of prompts, out of `digit_canvases.CATEGORIES`.
      cells: 2, or 1 for 8x8 canvases of a single digit (categories "count" and "size", one of it).
      sizes: canvases by split ("train", "reward", "judge"), as pairs.
      source: of the real digits, "sklearn" or "mnist".
      seed: of everything random.
    """

    categories: tuple[str, ...] = canvases.CATEGORIES
    cells: int = 2
    sizes: tuple[tuple[str, int], ...] = (("train", 4000), ("reward", 2000), ("judge", 1000))
    source: str = "sklearn"
    seed: int = 0


class Images(NamedTuple):
    """Canvases and their prompts.

    Attributes:
      images: pixels in [0, 1], `W` is 8 or 16.
      prompts: see `digit_canvases`.
    """

    images: Float[np.ndarray, "N 8 W"]
    prompts: Int[np.ndarray, "N 4"]


def check_spec(spec: DigitImagesSpec) -> None:
    """Raises ValueError naming the first impossible field, its value and what is allowed."""
    allowed = canvases.CATEGORIES if spec.cells == 2 else ("count", "size")
    if spec.cells not in (1, 2):
        raise ValueError(f"cells = {spec.cells}; allowed are 1 and 2")
    if not spec.categories or not set(spec.categories) <= set(allowed):
        raise ValueError(
            f"categories = {spec.categories}; allowed with {spec.cells} cells are {allowed}"
        )
    if spec.source not in canvases.SOURCES:
        raise ValueError(f"source = {spec.source!r}; allowed are {canvases.SOURCES}")
    for split, size in spec.sizes:
        if split not in SPLITS or size < 1:
            raise ValueError(f"sizes = {spec.sizes}; allowed are splits {SPLITS} with >= 1 canvas")


def make_images(spec: DigitImagesSpec) -> dict[str, Images]:
    """The canvases of every split.

    Raises:
      ValueError: the spec is impossible.
    """
    check_spec(spec)
    return {split: _split(spec, split, size) for split, size in spec.sizes}


def _split(spec: DigitImagesSpec, split: str, size: int) -> Images:
    bank = canvases.load_bank(split, source=spec.source)
    key = jax.random.fold_in(jax.random.key(spec.seed), SPLITS.index(split))
    keys = jax.random.split(jax.random.fold_in(key, 1), size)
    chosen = tuple(canvases.CATEGORIES.index(name) for name in spec.categories)
    prompts = canvases.draw_prompts(key, size, chosen)
    if spec.cells == 2:
        draw = jax.jit(jax.vmap(canvases.draw_canvas, in_axes=(0, None, 0)))
        return Images(np.asarray(draw(keys, bank, prompts)), np.asarray(prompts))
    prompts = jax.numpy.where(prompts[:, :1] == canvases.COUNT, prompts.at[:, 3].set(0), prompts)
    draw = jax.jit(jax.vmap(_single, in_axes=(0, None, 0)))
    return Images(np.asarray(draw(keys, bank, prompts)), np.asarray(prompts))


def _single(key: jax.Array, bank: canvases.Bank, prompt: jax.Array) -> jax.Array:
    """The one cell that is not blank."""
    label = jax.numpy.max(canvases.draw_cells(key, prompt))
    return canvases.draw_cell(key, bank, label)


def to_records(images: Images) -> Iterator[dict[str, Any]]:
    """Records as tensorflow-datasets writes them."""
    tokens = np.asarray(canvases.tokens(jax.numpy.asarray(images.prompts)))
    for position, (image, prompt) in enumerate(zip(*images)):
        text = canvases.sentence(prompt)
        yield dict(id=position, text=text, tokens=tokens[position], prompt=prompt, image=image)


def read_images(dataset: Dataset, split: str) -> Images:
    """All canvases of a split of a data set prepared by `datasets.prepare("digit_images/...")`.

    Raises:
      ValueError: no such split.
    """
    if split not in dataset.splits:
        raise ValueError(
            f"split = {split!r} of {dataset.name}; allowed are {', '.join(dataset.splits)}"
        )
    source = dataset.builder.as_data_source(split=split)
    rows = source.__getitems__(list(range(len(source))))
    images = np.stack([np.asarray(row["image"], np.float32) for row in rows])
    return Images(images, np.stack([np.asarray(row["prompt"], np.int32) for row in rows]))
