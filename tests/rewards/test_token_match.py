import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.rewards.token_match import token_match
from jaxreward.tasks import tokenizer as tokenizers

EOS = tokenizers.EOS


def until_eos(row) -> list:
    row = list(row)
    return row[: row.index(EOS) + 1] if EOS in row else row


def test_by_hand():
    answers = jnp.array([[7, 8, EOS, 0], [7, EOS, 0, 0]])
    tokens = jnp.array(
        [
            [[7, 8, EOS, 0], [7, 8, EOS, 9], [7, 8, 9, EOS], [7, EOS, 8, 0], [7, 8, 8, 8]],
            [[7, EOS, 0, 0], [7, EOS, EOS, 5], [EOS, 7, EOS, 0], [7, 7, EOS, 0], [7, 0, EOS, 0]],
        ]
    )
    rewards = jax.jit(token_match)(tokens, answers, jnp.array([3, 2]))
    assert rewards.dtype == jnp.float32
    np.testing.assert_array_equal(rewards, [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]])


@hypothesis.given(
    tokens=hnp.arrays(np.int32, (2, 3, 4), elements=hypothesis.strategies.integers(0, 4)),
    answers=hnp.arrays(np.int32, (2, 4), elements=hypothesis.strategies.integers(3, 4)),
    lengths=hnp.arrays(np.int32, (2,), elements=hypothesis.strategies.integers(1, 4)),
)
def test_agrees_with_comparing_lists(tokens, answers, lengths):
    for row, length in enumerate(lengths):
        answers[row, length - 1] = EOS
    expected = [
        [until_eos(response) == list(answers[p, : lengths[p]]) for response in tokens[p]]
        for p in range(2)
    ]
    rewards = token_match(jnp.array(tokens), jnp.array(answers), jnp.array(lengths))
    np.testing.assert_array_equal(rewards, np.array(expected, np.float32))


def test_widths_may_differ():
    answers, lengths = jnp.array([[7, EOS, 0, 0, 0], [7, 8, 9, EOS, 0]]), jnp.array([2, 4])
    tokens = jnp.array([[[7, EOS, 3]], [[7, 8, 9]]])
    np.testing.assert_array_equal(token_match(tokens, answers, lengths), [[1], [0]])
    longer = jnp.array([[[7, EOS, 3, 3, 3, 3]], [[7, 8, 9, EOS, 0, 0]]])
    np.testing.assert_array_equal(token_match(longer, answers[:, :4], lengths), [[1], [1]])


def test_matches_decoded_text():
    tokenizer = tokenizers.make_tokenizer(tokenizers.ARITHMETIC_ALPHABET)
    answers = tokenizers.encode(tokenizer, ["12", "-3"], 4, eos=True)
    texts = [["12", "1", "121"], ["-3", "3", "-"]]
    tokens = np.stack([tokenizers.encode(tokenizer, row, 5, eos=True).tokens for row in texts])
    rewards = token_match(jnp.array(tokens), jnp.array(answers.tokens), jnp.array(answers.lengths))
    np.testing.assert_array_equal(rewards, [[1, 0, 0], [1, 0, 0]])
