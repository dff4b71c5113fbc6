"""From a prepared data set to batches of arrays, on the host with grain or inside `jit`.

A data set of this room is small, so it is encoded once (`load_arrays`) and a batch is a gather
of rows. On the host `make_pipeline` walks over it with grain and its position is two integers;
inside `jit`, `batch_indices` gives the rows of a step as a pure function of key and step.
"""

import json
from typing import Any, Callable, NamedTuple, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxreward.tasks import datasets
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.tasks.datasets import Dataset
from jaxreward.tasks.records import Example
from jaxreward.tasks.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
"""Rows of examples by name; see `encode_examples`."""

TEXTS = ("prompt", "answer")
"""Entries of a batch that are arrays of `str`; all others are numeric."""


def load_arrays(
    dataset: Dataset,
    tokenizer: Tokenizer,
    *,
    prompt_length: int | None = None,
    answer_length: int | None = None,
    bos: bool = False,
    to_prompts: Callable[[list[str]], list[str]] = list,
) -> dict[str, Batch]:
    """Every split of a data set as arrays of equal widths.

    Args:
      dataset: from `datasets.prepare`.
      tokenizer: must know every character of the data.
      prompt_length: width `L` of the prompts; None takes the longest of any split.
      answer_length: width `A` of the answers, `eos` included; None likewise.
      bos: put `bos` before each prompt.
      to_prompts: from the data's prompts to what the policy reads, such as
        `pretrained_tokenizer.chat_prompts`.

    Raises:
      ValueError: see `datasets.read` and `tokenizer.encode`.
    """
    splits = {
        split: _shown(datasets.read(dataset, split), to_prompts) for split in dataset.splits
    }
    everything = [example for examples in splits.values() for example in examples]
    if prompt_length is None:
        prompts = [example.prompt for example in everything]
        prompt_length = tokenizers.encode(tokenizer, prompts, bos=bos).tokens.shape[1]
    if answer_length is None:
        answers = [text for example in everything for text in (example.answer, example.worked)]
        answer_length = tokenizers.encode(tokenizer, answers, eos=True).tokens.shape[1]
    return {
        split: encode_examples(examples, tokenizer, prompt_length, answer_length, bos=bos)
        for split, examples in splits.items()
    }


def _shown(examples: list[Example], to_prompts: Callable) -> list[Example]:
    """The examples with the prompts that the policy reads."""
    prompts = to_prompts([example.prompt for example in examples])
    return [example._replace(prompt=text) for example, text in zip(examples, prompts, strict=True)]


def all_examples(
    dataset: Dataset, split: str, tokenizer: Tokenizer, **lengths: Any
) -> Batch:
    """One split as arrays, as wide as the longest example of any split.

    Args:
      **lengths: keyword arguments of `load_arrays`.

    Raises:
      ValueError: see `load_arrays`; no such split.
    """
    if split not in dataset.splits:
        raise ValueError(
            f"split = {split!r} of {dataset.name}; allowed are {', '.join(dataset.splits)}"
        )
    return load_arrays(dataset, tokenizer, **lengths)[split]


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    prompt_length: int | None = None,
    answer_length: int | None = None,
    *,
    bos: bool = False,
) -> Batch:
    """Examples as arrays with leading axis `[N]`.

    Returns:
      `prompt_id`, `prompt_type`, `form`, `steps` int32 `[N]`; `tokens` int32 `[N, L]` padded on
      the right and `lengths` int32 `[N]`; `answer_tokens`, `answer_lengths` and
      `worked_tokens`, `worked_lengths` likewise with width `A`, `eos` included; `value`
      float64 `[N]`; `prompt`, `answer` arrays of `str` `[N]`.

    Raises:
      ValueError: no examples, or `tokenizer.encode` refuses a text.
    """
    if not examples:
        raise ValueError("examples = []; allowed is at least one example")

    def column(name: str) -> list:
        return [getattr(example, name) for example in examples]

    prompts = tokenizers.encode(tokenizer, column("prompt"), prompt_length, bos=bos)
    answers = tokenizers.encode(tokenizer, column("answer"), answer_length, eos=True)
    worked = tokenizers.encode(tokenizer, column("worked"), answer_length, eos=True)
    integers = {"prompt_id": "id", "prompt_type": "prompt_type", "form": "form", "steps": "steps"}
    return {
        **{name: np.array(column(field), np.int32) for name, field in integers.items()},
        "tokens": prompts.tokens,
        "lengths": prompts.lengths,
        "answer_tokens": answers.tokens,
        "answer_lengths": answers.lengths,
        "worked_tokens": worked.tokens,
        "worked_lengths": worked.lengths,
        "value": np.array(column("value"), np.float64),
        **{name: np.array(column(name), object) for name in TEXTS},
    }


def device_arrays(batch: Batch) -> dict[str, jax.Array]:
    """The numeric entries for use inside `jit`; `value` as float32, clipped to its range."""
    limit = np.finfo(np.float32).max
    numeric = {name: rows for name, rows in batch.items() if name not in TEXTS}
    if "value" in numeric:
        numeric["value"] = np.clip(numeric["value"], -limit, limit).astype(np.float32)
    return {name: jnp.asarray(rows) for name, rows in numeric.items()}


def take(batch: dict[str, Any], indices: Int[Any, "*B"]) -> dict[str, Any]:
    """The rows of `batch` at `indices`; for numpy and jax arrays alike."""
    return {name: rows[indices] for name, rows in batch.items()}


def batch_indices(
    key: jax.Array, step: Int[Array, ""] | int, num_examples: int, batch_size: int
) -> Int[Array, "P"]:
    """Rows of the batch of a step: a fresh permutation each epoch, whole batches only.

    A pure function of its arguments; `step` may be traced.

    Raises:
      ValueError: `batch_size` is not in `1 .. num_examples`.
    """
    _check_batch_size(batch_size, num_examples)
    epoch, position = jnp.divmod(jnp.asarray(step, jnp.int32), num_examples // batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return jax.lax.dynamic_slice(order, (position * batch_size,), (batch_size,))


class Pipeline(NamedTuple):
    """Batches over one split.

    Attributes:
      dataset: grain dataset of `Batch`; `iter(pipeline.dataset)` starts from the beginning.
      num_examples: size of the split.
      batches_per_epoch: number of batches before an example is repeated.
      identity: what a saved position belongs to; positions of another are refused.
    """

    dataset: grain.IterDataset
    num_examples: int
    batches_per_epoch: int
    identity: str


def make_pipeline(
    batch: Batch,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    drop_remainder: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    fingerprint: str = "",
) -> Pipeline:
    """Batches of `batch_size` rows in an order that is a function of `seed` only.

    The rows of a global batch are the same for any number of processes; each process gets
    its consecutive part of them. No example stands twice in a batch.

    Args:
      batch: the whole split, from `load_arrays` or `encode_examples`.
      batch_size: `P`, over all processes.
      seed: of the order; epochs differ.
      shuffle: False keeps the order of the examples.
      num_epochs: None never ends.
      drop_remainder: drop an epoch's last batch if it is smaller (needed to split it over
        processes).
      process_index: which part this process gets.
      process_count: number of parts.
      fingerprint: of the data set, kept in the saved position.

    Raises:
      ValueError: an empty split, or one of the numbers is impossible.
    """
    num_examples = _check_rows(batch)
    _check_batch_size(batch_size, num_examples)
    _check_division(batch_size, num_epochs, process_index, process_count, drop_remainder)
    part = batch_size // process_count
    rows = slice(process_index * part, (process_index + 1) * part)
    order = grain.MapDataset.range(num_examples).seed(seed)
    order = order.shuffle() if shuffle else order
    order = order.batch(batch_size, drop_remainder=drop_remainder)
    batches_per_epoch = len(order)
    order = order.repeat(num_epochs).map(lambda indices: take(batch, indices[rows]))
    dataset = order.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    layout = (num_examples, batch_size, seed, shuffle, drop_remainder)
    return Pipeline(dataset, num_examples, batches_per_epoch, f"{fingerprint}|{layout}")


def _check_rows(batch: Batch) -> int:
    """Number of rows; raises ValueError where entries disagree or ids are not positions."""
    ids = batch.get("prompt_id")
    if ids is None or ids.ndim != 1 or ids.dtype != np.int32:
        found = None if ids is None else (ids.dtype, ids.shape)
        raise ValueError(f"prompt_id = {found}; allowed is an int32 array of shape [N]")
    if len(ids) == 0:
        raise ValueError("the split has 0 examples; allowed is >= 1")
    for name, rows in batch.items():
        if len(rows) != len(ids):
            raise ValueError(f"{name} has {len(rows)} rows; allowed is the {len(ids)} of prompt_id")
    if not np.array_equal(ids, np.arange(len(ids))):
        raise ValueError("prompt_id are not 0 .. N - 1 in order; allowed is a whole split")
    return len(ids)


def _check_division(
    batch_size: int,
    num_epochs: int | None,
    process_index: int,
    process_count: int,
    drop_remainder: bool,
) -> None:
    if num_epochs is not None and num_epochs < 1:
        raise ValueError(f"num_epochs = {num_epochs}; allowed is >= 1, or None for no end")
    if not 0 <= process_index < process_count or batch_size % process_count:
        raise ValueError(
            f"process_index, process_count = {process_index}, {process_count}; allowed is "
            f"0 <= index < count, and a count that divides batch_size = {batch_size}"
        )
    if process_count > 1 and not drop_remainder:
        raise ValueError("drop_remainder = False; allowed is True with more than one process")


def _check_batch_size(batch_size: int, num_examples: int) -> None:
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size = {batch_size}; allowed is 1 to {num_examples}")


def save_position(pipeline: Pipeline, iterator: grain.DatasetIterator) -> bytes:
    """The position of an iterator of `pipeline.dataset` as JSON."""
    state = {"identity": pipeline.identity, "iterator": iterator.get_state()}
    return json.dumps(state, sort_keys=True).encode()


def restore_position(
    pipeline: Pipeline, iterator: grain.DatasetIterator, position: bytes
) -> None:
    """Puts a fresh iterator of `pipeline.dataset` where another one was.

    Raises:
      ValueError: the position is not one, or belongs to other data, order or batch size.
    """
    try:
        state = json.loads(position)
        identity, inner = state["identity"], state["iterator"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"position = {position[:60]!r}; allowed is what save_position wrote"
        ) from error
    if identity != pipeline.identity:
        raise ValueError(
            f"position belongs to {identity!r}; allowed is {pipeline.identity!r} (fingerprint, "
            "then examples, batch size, seed, shuffle, drop_remainder)"
        )
    iterator.set_state(inner)


class Sequences(NamedTuple):
    """Prompts with the answers that supervised training shows.

    Attributes:
      tokens: int32 `[B, T]`, each answer right after its prompt, then padding.
      loss_mask: `[B, T]`, True on the ids of the answer, its `EOS` included.
      lengths: int32 `[B]`, ids of prompt and answer together.
    """

    tokens: Int[Any, "B T"]
    loss_mask: Bool[Any, "B T"]
    lengths: Int[Any, "B"]


def supervised_sequences(batch: dict[str, Any], field: str = "worked") -> Sequences:
    """Joins prompts and answers; works on numpy arrays and, inside `jit`, on jax arrays.

    Args:
      batch: rows with `tokens`, `lengths` and `<field>_tokens`, `<field>_lengths`.
      field: "worked" or "answer", which answers to show.

    Raises:
      ValueError: an unknown `field`.
    """
    if field not in ("worked", "answer"):
        raise ValueError(f"field = {field!r}; allowed are 'worked' and 'answer'")
    xp = jnp if isinstance(batch["tokens"], jax.Array) else np
    prompts, answers = batch["tokens"], batch[f"{field}_tokens"]
    start = batch["lengths"][:, None]
    end = start + batch[f"{field}_lengths"][:, None]
    width = prompts.shape[1] + answers.shape[1]
    column = xp.arange(width, dtype=np.int32)[None, :]
    padding = ((0, 0), (0, answers.shape[1]))
    place = xp.clip(column - start, 0, answers.shape[1] - 1)
    shifted = xp.take_along_axis(answers, place, axis=1)
    tokens = xp.where(column < start, xp.pad(prompts, padding), shifted)
    tokens = xp.where(column < end, tokens, tokenizers.PAD).astype(np.int32)
    mask = (column >= start) & (column < end)
    return Sequences(tokens, mask, end[:, 0])
