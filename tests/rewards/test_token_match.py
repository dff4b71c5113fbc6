import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.rewards.token_match import (
    closeness,
    final_answers,
    final_token_match,
    integer_values,
    token_match,
)
from jaxreward.rewards.verifiers import continuous_reward
from jaxreward.tasks import tokenizer as tokenizers

EOS = tokenizers.EOS
match = jax.jit(token_match)


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
    rewards = match(tokens, answers, jnp.array([3, 2]))
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
    rewards = match(jnp.array(tokens), jnp.array(answers), jnp.array(lengths))
    np.testing.assert_array_equal(rewards, np.array(expected, np.float32))


def test_widths_may_differ():
    answers, lengths = jnp.array([[7, EOS, 0, 0, 0], [7, 8, 9, EOS, 0]]), jnp.array([2, 4])
    tokens = jnp.array([[[7, EOS, 3]], [[7, 8, 9]]])
    np.testing.assert_array_equal(match(tokens, answers, lengths), [[1], [0]])
    longer = jnp.array([[[7, EOS, 3, 3, 3, 3]], [[7, 8, 9, EOS, 0, 0]]])
    np.testing.assert_array_equal(match(longer, answers[:, :4], lengths), [[1], [1]])


def test_matches_decoded_text():
    tokenizer = tokenizers.make_tokenizer(tokenizers.ARITHMETIC_ALPHABET)
    answers = tokenizers.encode(tokenizer, ["12", "-3"], 4, eos=True)
    texts = [["12", "1", "121"], ["-3", "3", "-"]]
    tokens = np.stack([tokenizers.encode(tokenizer, row, 5, eos=True).tokens for row in texts])
    rewards = match(jnp.array(tokens), jnp.array(answers.tokens), jnp.array(answers.lengths))
    np.testing.assert_array_equal(rewards, [[1, 0, 0], [1, 0, 0]])


# Final answers

SEPARATOR = "="
WRAPPERS = [("", ".0"), ("is ", "")]
CHARS = tokenizers.make_tokenizer(tokenizers.WORKED_ALPHABET)


def ids(text):
    return tuple(tokenizers.encode(CHARS, [text]).tokens[0, : len(text)].tolist())


final_tokens = jax.jit(final_token_match, static_argnames=("separator", "end", "wrappers"))


def final_match(texts, answer, wrappers=(), width=24, answer_width=10):
    """Texts that end with `$` end with an end of text; others were cut off."""
    rows = [list(ids(text.rstrip("$"))) + [EOS] * text.endswith("$") for text in texts]
    tokens = np.array([row + [9] * (width - len(row)) for row in rows])[None]
    wanted = tokenizers.encode(CHARS, [answer], answer_width, eos=True)
    own = (jnp.asarray(wanted.tokens), jnp.asarray(wanted.lengths))
    wrapped = tuple((ids(a), ids(b)) for a, b in wrappers)
    options = dict(separator=ids(SEPARATOR)[0], end=EOS, wrappers=wrapped)
    return final_tokens(jnp.asarray(tokens), *own, **options).tolist()[0]


def test_final_answers_by_hand():
    texts = ["3+4=7 7*2=14$", "=14$", "14$", "=14", "=14=$", "=1$", "=145$", "= 14$", "=15=14$", "$"]
    assert final_match(texts, "14") == [1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert final_match(["=a" + "b" * 20 + "$"], "14", answer_width=30) == [0]
    assert final_match(["=" + "b" * 22 + "$"], "b" * 22, answer_width=30) == [1]
    assert final_match(["=" + "b" * 22 + "$"], "b" * 23, answer_width=30) == [0]


def test_spellings_count_as_equal_only_when_asked():
    texts = ["=12$", "=12.0$", "=is 12$", "=is 12.0$", "=.0$", "=is $", "=13.0$", "=12.$"]
    for answer in ("12", "12.0", "is 12"):
        exact = [float(text == f"={answer}$") for text in texts]
        assert final_match(texts, answer) == exact
        assert final_match(texts, answer, WRAPPERS) == [1, 1, 1, 0, 0, 0, 0, 0]


@hypothesis.given(
    hnp.arrays(np.int32, (2, 3, 7), elements=hypothesis.strategies.sampled_from([0, 2, 5, 7, 8])),
    hnp.arrays(np.int32, (2, 3), elements=hypothesis.strategies.sampled_from([5, 7, 8])),
)
def test_final_answers_equal_plain_python(tokens, answers):
    lengths = np.array([3, 2], np.int32)
    answers[0, 2], answers[1, 1] = EOS, EOS
    own = jnp.asarray(tokens), jnp.asarray(answers), jnp.asarray(lengths)
    found = np.asarray(final_tokens(*own, separator=5, end=EOS))
    for p in range(2):
        wanted = answers[p, : lengths[p]].tolist()
        for g in range(3):
            row = tokens[p, g].tolist()
            text = row[: row.index(EOS)] if EOS in row else None
            right = text is not None and 5 in text
            if right:
                text = text[len(text) - text[::-1].index(5) :]
                right = bool(text) and text + [EOS] == wanted
            assert bool(found[p, g]) == bool(right)


# Numbers


def values_of(texts, width=14):
    rows = [list(ids(text)) + [EOS] for text in texts]
    value, there = read_integers(jnp.array([row + [9] * (width - len(row)) for row in rows]))
    return value.tolist(), there.tolist()


@jax.jit
def read_integers(tokens):
    answers = final_answers(tokens, ids(SEPARATOR)[0], EOS)
    return integer_values(answers, ids("0")[0], ids("-")[0])


def test_integers_by_hand():
    texts = ["=0", "=12", "=-305", "1=7", "=123456789", "=1234567890", "=", "=-", "=1-2", "=1 2", "4"]
    value, there = values_of(texts)
    assert there == [True] * 5 + [False] * 6
    np.testing.assert_allclose(value[:5], [0, 12, -305, 7, 123456789], rtol=1e-6)
    assert value[5:] == [0.0] * 6


@hypothesis.given(hypothesis.strategies.lists(hypothesis.strategies.integers(-99999, 99999), min_size=1))
def test_integers_are_read_back(numbers):
    numbers = numbers[:4] + [0] * (4 - len(numbers[:4]))
    value, there = values_of([f"={n}" for n in numbers])
    assert value == [float(n) for n in numbers] and all(there)


def test_card_check_1_closeness_is_the_continuous_reward():
    pairs = np.array(
        [(10, 10), (10.5, 10), (12, 10), (-10, 10), (0.5, 0), (0, 0), (6490.4, 6490.42220471333), (0.3, 0.25)]
    )
    found = jax.jit(closeness)(*jnp.asarray(pairs.T, jnp.float32))
    np.testing.assert_allclose(found, [1, 0.725, 0.4, 0, 0.25, 1, 0.988896, 0.875], atol=2e-4)
    exact = [continuous_reward(a, b) for a, b in pairs]
    np.testing.assert_allclose(found, exact, atol=2e-4)
