import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.tasks.tokenizer import BOS, EOS, INVALID, PAD

DEFAULT = tokenizers.make_tokenizer()
TEXTS = st.lists(st.text(tokenizers.ALPHABET, max_size=9), min_size=1, max_size=6)


def test_default_vocabularies():
    assert DEFAULT.vocab_size == 66
    assert tokenizers.make_tokenizer(tokenizers.ARITHMETIC_ALPHABET).vocab_size == 23
    assert (PAD, BOS, EOS) == (0, 1, 2)


def test_ids_of_a_small_alphabet_by_hand():
    small = tokenizers.make_tokenizer("ba1")
    tokens, lengths = tokenizers.encode(small, ["ab1", "", "b"], 6, bos=True, eos=True)
    np.testing.assert_array_equal(
        tokens, [[1, 4, 3, 5, 2, 0], [1, 2, 0, 0, 0, 0], [1, 3, 2, 0, 0, 0]]
    )
    np.testing.assert_array_equal(lengths, [5, 2, 3])
    assert tokens.dtype == lengths.dtype == np.int32


@hypothesis.given(texts=TEXTS, eos=st.booleans())
def test_round_trip(texts, eos):
    tokens, lengths = tokenizers.encode(DEFAULT, texts, 12, eos=eos)
    assert tokenizers.decode(DEFAULT, tokens) == texts
    assert tokenizers.decode(DEFAULT, tokens, lengths) == texts
    np.testing.assert_array_equal(lengths, [len(text) + eos for text in texts])


@hypothesis.given(
    st.lists(st.lists(st.integers(-5, 80), min_size=7, max_size=7), min_size=1, max_size=5)
)
def test_decode_agrees_with_a_loop_on_any_ids(rows):
    def plain(row):
        if EOS in row:
            row = row[: row.index(EOS)]
        else:
            row = row[: max((i + 1 for i, token in enumerate(row) if token != PAD), default=0)]
        return "".join(
            tokenizers.ALPHABET[i - 3] if 3 <= i < DEFAULT.vocab_size else INVALID for i in row
        )

    assert tokenizers.decode(DEFAULT, np.array(rows)) == [plain(row) for row in rows]


def test_rubbish_inside_a_text_never_reads_as_an_answer():
    one, two = 3 + tokenizers.ALPHABET.index("1"), 3 + tokenizers.ALPHABET.index("2")
    rows = np.array(
        [
            [one, PAD, two, EOS, 0],
            [BOS, one, two, EOS, 0],
            [one, two, PAD, EOS, 0],
            [one, two, 66, EOS, 0],
            [one, two, -1, EOS, 0],
            [one, two, EOS, 99, -7],
            [one, two, PAD, PAD, PAD],
        ]
    )
    bad = INVALID
    assert tokenizers.decode(DEFAULT, rows) == [
        f"1{bad}2", f"{bad}12", f"12{bad}", f"12{bad}", f"12{bad}", "12", "12"
    ]
    assert tokenizers.decode(DEFAULT, rows[-1:], np.array([4])) == [f"12{bad}{bad}"]
    for text in tokenizers.decode(DEFAULT, rows):
        text.encode("utf-8")


def test_decode_is_row_major_over_leading_axes():
    texts = [str(i) for i in range(6)]
    tokens = tokenizers.encode(DEFAULT, texts, 3, eos=True).tokens.reshape(2, 3, 3)
    assert tokenizers.decode(DEFAULT, tokens) == texts
    assert tokenizers.decode(DEFAULT, tokens.astype(np.uint8)) == texts
    assert tokenizers.decode(DEFAULT, np.zeros((2, 3, 0), np.int32)) == [""] * 6
    assert tokenizers.decode(DEFAULT, np.zeros((0, 3), np.int32)) == []


def test_no_texts_and_exact_fit():
    assert tokenizers.encode(DEFAULT, []).tokens.shape == (0, 1)
    assert tokenizers.encode(DEFAULT, ["12"], 3, eos=True).tokens.shape == (1, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tokenizers.encode(DEFAULT, ["7+5=", "7×5="]), r"'7×5=' holds .* '×'"),
        (lambda: tokenizers.encode(DEFAULT, ["\ud800"]), "holds the character"),
        (lambda: tokenizers.encode(DEFAULT, ["1", "123"], 3, eos=True), r"'123' takes 4 ids.*3"),
        (lambda: tokenizers.decode(DEFAULT, np.zeros((2, 3))), "float64"),
        (lambda: tokenizers.decode(DEFAULT, np.int32(3)), r"shape \(\)"),
        (lambda: tokenizers.make_tokenizer(""), "at least one"),
        (lambda: tokenizers.make_tokenizer("aba"), r"\['a'\]"),
        (lambda: tokenizers.make_tokenizer("a\0"), "reserves"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
