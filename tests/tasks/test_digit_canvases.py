import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards import images as rewards
from jaxreward.tasks import datasets, image_records
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.tasks.image_records import DigitImagesSpec


draw_prompts = jax.jit(canvases.draw_prompts, static_argnums=(1, 2))
allowed_pairs = jax.jit(canvases.allowed_pairs)
tokens = jax.jit(canvases.tokens)


@pytest.fixture(scope="module", name="bank")
def real_digits():
    return canvases.load_bank("reward")


def pairs_of(*prompt):
    allowed = allowed_pairs(jnp.array(prompt, jnp.int32))
    return set(map(tuple, np.argwhere(np.asarray(allowed)).tolist()))


def test_parts_share_no_image():
    parts = [np.asarray(canvases.load_bank(part).images).reshape(-1, 64) for part in canvases.PARTS]
    assert sum(map(len, parts)) == 1797
    rows = [set(map(bytes, part)) for part in parts]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


def test_bank_finds_every_digit(bank):
    for digit in range(10):
        assert set(np.asarray(bank.labels)[np.asarray(bank.by_digit)[digit]]) == {digit}
    assert 0 <= np.min(bank.images) and np.max(bank.images) == 1.0


def test_what_satisfies_a_prompt():
    big, small = {4, 14}, {8, 18}
    relation = {(a, b) for a in big for b in small}
    assert pairs_of(canvases.RELATION, 3, 7, 0) == relation
    assert pairs_of(canvases.RELATION, 3, 7, 1) == {(b, a) for a, b in relation}
    assert pairs_of(canvases.BOTH, 3, 7, 0) == relation | {(b, a) for a, b in relation}
    assert pairs_of(canvases.COUNT, 3, 3, 0) == {(4, 0), (14, 0), (0, 4), (0, 14)}
    assert pairs_of(canvases.COUNT, 3, 3, 1) == {(a, b) for a in big for b in big}
    assert pairs_of(canvases.SIZE, 3, 3, 0) == {(4, 0), (0, 4)}
    assert pairs_of(canvases.SIZE, 3, 3, 1) == {(14, 0), (0, 14)}


def test_what_is_drawn_satisfies_its_prompt(key):

    @jax.jit
    def draw(key):
        prompts = canvases.draw_prompts(key, 400)
        cells = jax.vmap(canvases.draw_cells)(jax.random.split(key, 400), prompts)
        only = canvases.draw_prompts(key, 50, (canvases.COUNT,))
        return prompts, cells, jax.vmap(canvases.allowed_pairs)(prompts), only

    prompts, cells, allowed, only = map(np.asarray, draw(key))
    assert np.all(allowed[np.arange(400), cells[:, 0], cells[:, 1]])
    category, first, second, _ = prompts.T
    assert set(category) == {0, 1, 2, 3}
    assert np.all((first != second) == (category <= canvases.RELATION))
    assert set(only[:, 0]) == {canvases.COUNT}


def test_held_out_prompts_are_new_combinations_of_known_words(key):
    every = canvases.all_prompts()
    assert len(np.unique(every, axis=0)) == len(every) == 310
    away = canvases.is_held_out(every)
    for kind in range(4):
        assert np.mean(away[every[:, 0] == kind]) == pytest.approx(0.2)
    seen, new = every[~away], every[away]
    words = lambda rows: set(np.asarray(tokens(jnp.asarray(rows))).ravel().tolist())
    assert words(new) <= words(seen) == set(range(len(canvases.WORDS)))
    # no canvas of a held-out pair is one of training: neither the order nor the relation is new alone
    pairs = lambda rows: {frozenset((a, b)) for c, a, b, _ in rows.tolist() if c <= canvases.RELATION}
    assert not pairs(seen) & pairs(new)
    for digit in range(10):
        assert np.any((new[:, 1:3] == digit) & (new[:, :1] <= canvases.RELATION))
    assert canvases.is_held_out(np.array([[2, 6, 6, 1], [2, 6, 6, 0], [3, 7, 7, 0]])).tolist() == [
        True, False, True
    ]  # fmt: skip


def test_balanced_prompts_are_rows_of_their_table(key):
    table = canvases.all_prompts()[-60:]  # relations, counts and sizes
    draw = jax.jit(lambda key: canvases.draw_balanced(key, table, 600))
    drawn = np.asarray(draw(key))
    np.testing.assert_array_equal(drawn[:, 0], np.tile([1, 2, 3], 200))
    rows = set(map(tuple, table.tolist()))
    assert set(map(tuple, drawn.tolist())) == rows
    counts = np.unique(drawn[drawn[:, 0] == 3], axis=0, return_counts=True)[1]
    assert len(counts) == 20 and counts.max() < 10 + 5 * 10**0.5


def test_canvas_shows_real_digits(key, bank):
    prompt = jnp.array([canvases.RELATION, 3, 7, 1], jnp.int32)
    canvas = np.asarray(jax.jit(canvases.draw_canvas)(key, bank, prompt))
    for cell, digit in ((canvas[:, :8], 7), (canvas[:, 8:], 3)):
        same = np.flatnonzero(np.all(np.asarray(bank.images) == cell, axis=(1, 2)))
        assert np.asarray(bank.labels)[same[0]] == digit
    draw_cell = jax.jit(canvases.draw_cell)
    small = np.asarray(draw_cell(key, bank, jnp.int32(14)))
    inner = small[2:6, 2:6]
    assert float(np.sum(small)) == pytest.approx(inner.sum()) and inner.sum() > 0
    assert not np.any(draw_cell(key, bank, jnp.int32(0)))


def test_prompts_in_words_and_numbers(key):
    cases = {
        (0, 3, 7, 0): "a 3 and a 7", (1, 3, 7, 0): "a 3 left of a 7", (1, 3, 7, 1): "a 3 right of a 7",
        (2, 5, 5, 0): "one 5", (2, 5, 5, 1): "two 5s", (3, 4, 4, 0): "a big 4", (3, 4, 4, 1): "a small 4",
    }
    for prompt, words in cases.items():
        assert canvases.sentence(prompt) == words
    found = tokens(jnp.array(list(cases), jnp.int32))
    read = [[canvases.WORDS[index] for index in row] for row in found.tolist()]
    assert read[:2] == [["3", "and", "7"], ["3", "left of", "7"]]
    assert read[4:6] == [["5", "two", "nothing"], ["4", "big", "nothing"]]
    prompts = draw_prompts(key, 300)
    rows = np.asarray(tokens(prompts))
    assert len(np.unique(rows, axis=0)) == len(np.unique(np.asarray(prompts), axis=0))


def test_builder_writes_what_it_reads(tmp_path):
    spec = DigitImagesSpec(sizes=(("train", 30), ("judge", 10)))
    made = datasets.prepare("digit_images", tmp_path, spec)
    assert made.splits == {"train": 30, "judge": 10}
    read, drawn = image_records.read_images(made, "train"), image_records.make_images(spec)["train"]
    np.testing.assert_array_equal(read.images, drawn.images)
    np.testing.assert_array_equal(read.prompts, drawn.prompts)
    row = made.builder.as_data_source(split="judge")[3]
    assert row["text"].decode() == canvases.sentence(row["prompt"])
    np.testing.assert_array_equal(row["tokens"], tokens(jnp.asarray(row["prompt"], jnp.int32)))
    with pytest.raises(ValueError, match="split = 'test'"):
        image_records.read_images(made, "test")


def test_single_digits_fill_one_cell():
    spec = DigitImagesSpec(("count", "size"), cells=1, sizes=(("train", 20),))
    made = image_records.make_images(spec)["train"]
    assert made.images.shape == (20, 8, 8) and np.all(made.images.reshape(20, -1).sum(axis=1) > 0)
    assert not np.any(made.prompts[made.prompts[:, 0] == canvases.COUNT, 3])


@pytest.mark.parametrize(
    "spec,words",
    [
        (DigitImagesSpec(cells=3), "cells = 3"),
        (DigitImagesSpec(cells=1), "categories"),
        (DigitImagesSpec(("colour",)), "categories"),
        (DigitImagesSpec(source="web"), "source"),
        (DigitImagesSpec(sizes=(("test", 3),)), "sizes"),
    ],
)
def test_impossible_specs_are_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        image_records.check_spec(spec)


def test_banks_are_checked():
    with pytest.raises(ValueError, match="part = 'test'"):
        canvases.load_bank("test")
    with pytest.raises(ValueError, match="every digit"):
        canvases.make_bank(np.zeros((3, 8, 8)), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="images have shape"):
        canvases.make_bank(np.zeros((3, 4, 4)), np.array([0, 1, 2]))


def test_mnist_is_shrunk_and_its_absence_explained(tmp_path, monkeypatch):
    image = np.zeros((28, 28), np.uint8)
    image[2:5, 2:5] = 255
    np.testing.assert_array_equal(canvases.shrink(image), np.pad([[1.0]], ((0, 7), (0, 7))))
    import tensorflow_datasets as tfds

    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(OSError, match="source = 'sklearn'"):
        canvases.load_bank("train", source="mnist", data_dir=str(tmp_path))


def test_labels_agree_with_the_rewards():
    assert rewards.CELL_LABELS == 21
    perfect = 9.0 * jax.nn.one_hot(jnp.array([4, 8]), 21)
    assert bool(rewards.fulfilled(perfect, canvases.allowed_pairs(jnp.array([1, 3, 7, 0], jnp.int32))))
