import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.tasks import arithmetic, datasets, fraction_forms, pipeline
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.tasks.fraction_forms import FractionSpec

TOKENIZER = tokenizers.make_tokenizer(tokenizers.ARITHMETIC_ALPHABET)
EXAMPLES = fraction_forms.make_examples(FractionSpec())["train"]
BATCH = pipeline.encode_examples(EXAMPLES, TOKENIZER)


def ids(batches) -> list[list[int]]:
    return [batch["prompt_id"].tolist() for batch in batches]


def take_n(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


def test_arrays_hold_the_examples():
    assert BATCH["tokens"].dtype == BATCH["lengths"].dtype == np.int32
    assert tokenizers.decode(TOKENIZER, BATCH["tokens"]) == [e.prompt for e in EXAMPLES]
    for field in ("answer", "worked"):
        texts = tokenizers.decode(TOKENIZER, BATCH[f"{field}_tokens"])
        assert texts == [getattr(example, field) for example in EXAMPLES]
        last = BATCH[f"{field}_lengths"][:, None] - 1
        ends = np.take_along_axis(BATCH[f"{field}_tokens"], last, axis=1)
        assert (ends == tokenizers.EOS).all()
    assert BATCH["answer"].tolist() == [e.answer for e in EXAMPLES]
    assert BATCH["prompt_type"].tolist() == [e.prompt_type for e in EXAMPLES]
    np.testing.assert_array_equal(BATCH["value"], [e.value for e in EXAMPLES])
    np.testing.assert_array_equal(BATCH["prompt_id"], np.arange(len(EXAMPLES)))


def test_splits_have_equal_widths(tmp_path):
    made = datasets.prepare("exact_fraction/tiny", tmp_path)
    arrays = pipeline.load_arrays(made, TOKENIZER, bos=True)
    assert {k: len(v["prompt_id"]) for k, v in arrays.items()} == {"train": 72, "validation": 20}
    widths = {split: [rows.shape[1:] for rows in batch.values()] for split, batch in arrays.items()}
    assert widths["train"] == widths["validation"]
    assert (arrays["train"]["tokens"][:, 0] == tokenizers.BOS).all()
    wide = pipeline.all_examples(made, "validation", TOKENIZER, prompt_length=20, answer_length=11)
    assert wide["tokens"].shape == (20, 20) and wide["answer_tokens"].shape == (20, 11)
    with pytest.raises(ValueError, match="at most length = 3"):
        pipeline.load_arrays(made, TOKENIZER, prompt_length=3)
    with pytest.raises(ValueError, match="split = 'test'"):
        pipeline.all_examples(made, "test", TOKENIZER)


@pytest.mark.parametrize("shuffle", [True, False])
def test_restored_to_a_fresh_object_the_next_thousand_records_are_the_same(shuffle):
    made = pipeline.make_pipeline(BATCH, 40, seed=3, shuffle=shuffle)
    iterator = iter(made.dataset)
    take_n(iterator, 17)  # stops inside the second epoch
    position = pipeline.save_position(made, iterator)
    expected = take_n(iterator, 25)
    state = json.loads(position)["iterator"]
    assert len(position) < 200 and all(isinstance(v, (int, bool)) for v in state.values())

    again = pipeline.make_pipeline(BATCH, 40, seed=3, shuffle=shuffle)
    fresh = iter(again.dataset)
    pipeline.restore_position(again, fresh, position)
    restored = take_n(fresh, 25)
    for one, other in zip(expected, restored):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert pipeline.save_position(made, iterator) == pipeline.save_position(again, fresh)


def test_restoring_before_or_after_use_is_the_same():
    made = pipeline.make_pipeline(BATCH, 100)
    iterator = iter(made.dataset)
    start = pipeline.save_position(made, iterator)
    first = ids(take_n(iterator, 7))
    pipeline.restore_position(made, iterator, start)
    assert ids(take_n(iterator, 7)) == first


def test_every_epoch_is_a_new_permutation():
    made = pipeline.make_pipeline(BATCH, 50, seed=1)
    assert made.batches_per_epoch == 10 and made.num_examples == 500
    iterator = iter(made.dataset)
    epochs = [sum(ids(take_n(iterator, 10)), []) for _ in range(3)]
    assert all(sorted(epoch) == list(range(500)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = iter(pipeline.make_pipeline(BATCH, 50, seed=2).dataset)
    assert sum(ids(take_n(other, 10)), []) != epochs[0]
    same = iter(pipeline.make_pipeline(BATCH, 50, seed=1).dataset)
    assert sum(ids(take_n(same, 10)), []) == epochs[0]


def test_remainder_and_end():
    kept = pipeline.make_pipeline(BATCH, 64, shuffle=False, num_epochs=1, drop_remainder=False)
    batches = ids(kept.dataset)
    assert sum(batches, []) == list(range(500)) and len(batches[-1]) == 500 % 64
    dropped = pipeline.make_pipeline(BATCH, 64, num_epochs=2)
    batches = ids(dropped.dataset)
    assert len(batches) == 2 * dropped.batches_per_epoch == 14
    assert all(len(set(batch)) == 64 for batch in batches)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_global_batch_in_order(count):
    whole = ids(take_n(iter(pipeline.make_pipeline(BATCH, 16, seed=5).dataset), 40))
    parts = [
        ids(
            take_n(
                iter(
                    pipeline.make_pipeline(
                        BATCH, 16, seed=5, process_index=index, process_count=count
                    ).dataset
                ),
                40,
            )
        )
        for index in range(count)
    ]
    assert [sum(rows, []) for rows in zip(*parts)] == whole


def test_rows_stay_together():
    for batch in take_n(iter(pipeline.make_pipeline(BATCH, 8).dataset), 5):
        assert set(batch) == set(BATCH)
        for row, number in enumerate(batch["prompt_id"]):
            for name in BATCH:
                np.testing.assert_array_equal(batch[name][row], BATCH[name][number])
    assert isinstance(pipeline.make_pipeline(BATCH, 8).dataset, grain.IterDataset)


def test_position_of_another_pipeline_is_refused():
    made = pipeline.make_pipeline(BATCH, 8, fingerprint="abc")
    position = pipeline.save_position(made, iter(made.dataset))
    for change in ({"batch_size": 16}, {"seed": 1}, {"shuffle": False}, {"fingerprint": "abd"}):
        other = pipeline.make_pipeline(BATCH, **{"batch_size": 8, "fingerprint": "abc", **change})
        with pytest.raises(ValueError, match="position belongs to 'abc"):
            pipeline.restore_position(other, iter(other.dataset), position)
    for rubbish in (b"", b"{}", b"[1]", b"\xff\x00", position[:-4]):
        with pytest.raises(ValueError, match="allowed is what save_position wrote"):
            pipeline.restore_position(made, iter(made.dataset), rubbish)


def empty() -> pipeline.Batch:
    return {name: rows[:0] for name, rows in BATCH.items()}


@pytest.mark.parametrize(
    "batch, arguments, message",
    [
        (empty(), {}, "0 examples; allowed is >= 1"),
        (BATCH, {"batch_size": 0}, "batch_size = 0; allowed is 1 to 500"),
        (BATCH, {"batch_size": 501}, "batch_size = 501; allowed is 1 to 500"),
        (BATCH, {"num_epochs": 0}, "num_epochs = 0"),
        (BATCH, {"process_count": 3}, "divides batch_size = 8"),
        (BATCH, {"process_index": 2, "process_count": 2}, "0 <= index < count"),
        (BATCH, {"process_count": 2, "drop_remainder": False}, "drop_remainder = False"),
        ({**BATCH, "prompt_id": BATCH["prompt_id"].astype(np.float32)}, {}, "int32 array"),
        ({**BATCH, "prompt_id": BATCH["prompt_id"] + np.int32(1)}, {}, "not 0 .. N - 1"),
        ({**BATCH, "value": BATCH["value"][1:]}, {}, "value has 499 rows"),
        ({"value": BATCH["value"]}, {}, "prompt_id = None"),
    ],
)
def test_bad_input(batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.make_pipeline(batch, **{"batch_size": 8, **arguments})


def test_no_examples():
    with pytest.raises(ValueError, match="at least one example"):
        pipeline.encode_examples([], TOKENIZER)


def test_batches_inside_jit(key):
    """The same under jit and scan; each epoch a permutation; epochs and keys differ."""

    def draw(key, steps):
        step_fn = lambda carry, step: (carry, pipeline.batch_indices(key, step, 50, 8))
        return jax.lax.scan(step_fn, None, steps)[1]

    drawn = np.asarray(jax.jit(draw)(key, jnp.arange(12)))
    assert drawn.shape == (12, 8)
    for epoch in (drawn[:6], drawn[6:]):
        assert len(set(epoch.ravel())) == 48 and epoch.min() >= 0 and epoch.max() < 50
    assert not np.array_equal(drawn[:6], drawn[6:])
    np.testing.assert_array_equal(pipeline.batch_indices(key, 7, 50, 8), drawn[7])
    other = pipeline.batch_indices(jax.random.fold_in(key, 1), 7, 50, 8)
    assert not np.array_equal(other, drawn[7])
    with pytest.raises(ValueError, match="batch_size = 51; allowed is 1 to 50"):
        pipeline.batch_indices(key, 0, 50, 51)


def test_data_on_the_device():
    arrays = pipeline.device_arrays(BATCH)
    assert set(arrays) == set(BATCH) - {"prompt", "answer"}
    rows = jax.jit(pipeline.take)(arrays, jnp.array([3, 1]))
    assert tokenizers.decode(TOKENIZER, rows["tokens"]) == [EXAMPLES[3].prompt, EXAMPLES[1].prompt]
    assert rows["value"].dtype == jnp.float32
    huge = pipeline.device_arrays({"value": np.array([-1e200, 0.5])})["value"]
    np.testing.assert_allclose(huge, [-3.4028235e38, 0.5])


@pytest.mark.parametrize("field", ["worked", "answer"])
def test_supervised_sequences(field):
    made = pipeline.supervised_sequences(BATCH, field)
    for row, example in enumerate(EXAMPLES):
        text = example.prompt + getattr(example, field)
        tokens, lengths = tokenizers.encode(TOKENIZER, [text], made.tokens.shape[1], eos=True)
        np.testing.assert_array_equal(made.tokens[row], tokens[0])
        assert made.lengths[row] == lengths[0]
        shown = np.arange(made.tokens.shape[1])
        expected = (shown >= len(example.prompt)) & (shown < lengths[0])
        np.testing.assert_array_equal(made.loss_mask[row], expected)
    on_device = jax.jit(pipeline.supervised_sequences, static_argnums=1)(
        pipeline.device_arrays(BATCH), field
    )
    for host, device in zip(made, on_device):
        np.testing.assert_array_equal(host, device)
    assert on_device.tokens.dtype == jnp.int32


def test_supervised_sequences_of_an_unknown_field():
    with pytest.raises(ValueError, match="field = 'form'; allowed are 'worked' and 'answer'"):
        pipeline.supervised_sequences(BATCH, "form")


def test_latex_fits_the_default_alphabet():
    spec = arithmetic.ExpressionSpec(sizes=(("train", 20),))
    default = tokenizers.make_tokenizer()
    batch = pipeline.encode_examples(arithmetic.make_examples(spec)["train"], default)
    assert tokenizers.decode(default, batch["tokens"]) == batch["prompt"].tolist()
