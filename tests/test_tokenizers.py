"""CLIP's tokenizer: official ids (vectors), and what it promises for any string."""

import gzip
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_ssl import tokenizers
from keras_ssl.tokenizers import CLIPTokenizer, is_text, tokenize

VECTORS = np.load(Path(__file__).parent / "vectors" / "clip_tokenizer.npz")
TEXTS = json.loads(str(VECTORS["in/texts_json"]))
MERGES = Path(tokenizers.__file__).parent / "data" / "bpe_simple_vocab_16e6.txt.gz"
TOKENIZER = CLIPTokenizer(context_length=16, truncate=True)


def test_official_ids():
    np.testing.assert_array_equal(CLIPTokenizer(truncate=True)(TEXTS), VECTORS["out/ids_L77"])
    np.testing.assert_array_equal(TOKENIZER(TEXTS), VECTORS["out/ids_L16"])


@given(st.text(max_size=40))
def test_any_string_is_one_sequence(text):
    (ids,) = TOKENIZER(text)
    end = ids.argmax()
    assert ids[0] == TOKENIZER.start_id and ids[end] == TOKENIZER.end_id
    assert not ids[end + 1 :].any()


@given(st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), max_size=6))
def test_words_come_back(words):
    assert TOKENIZER.decode(TOKENIZER.encode(" ".join(words))).split() == words


@given(st.from_regex(r"[a-z]{1,12}", fullmatch=True), st.integers(0, 400))
def test_fewer_merges_apply_the_first_ones_in_order(word, count):
    """Sennrich et al., algorithm 1: merge after merge, wherever its pair of symbols stands."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1 : count + 1]
    symbols = [*word[:-1], word[-1] + "</w>"]
    for first, second in map(str.split, lines):
        i = 0
        while i < len(symbols) - 1:
            if symbols[i : i + 2] == [first, second]:
                symbols[i : i + 2] = [first + second]
            i += 1
    tokenizer = CLIPTokenizer(num_merges=count)
    ids = tokenizer.encode(word)
    assert [tokenizer.decode([i]).strip() for i in ids] == [s.replace("</w>", "") for s in symbols]
    assert tokenizer.vocabulary_size == 514 + count == tokenizer.end_id + 1
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(tokenizer))
    np.testing.assert_array_equal(again(word), tokenizer(word))


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_merges=-1"):
        CLIPTokenizer(num_merges=-1)


def test_long_text_is_refused_unless_it_may_be_cut():
    with pytest.raises(ValueError, match="100 tokens and there is room for 75"):
        CLIPTokenizer()(["a cat", "cat " * 100])
    with pytest.raises(ValueError, match="context_length=2"):
        CLIPTokenizer(2)


def test_captions_as_users_give_them():
    assert is_text("a") and is_text([["a"], ["b"]]) and is_text(np.array(["a"]))
    assert is_text(np.array([b"a"], object)) and not is_text(np.zeros((2, 3), "int32"))
    plain = tokenize(["a cat", None, b"a dog", ""], TOKENIZER)
    np.testing.assert_array_equal(plain[[0, 2]], TOKENIZER(["a cat", "a dog"]))
    assert not plain[[1, 3]].any()  # missing captions
    nested = tokenize([["a cat", "cat"], ["a dog"]], TOKENIZER)
    assert nested.shape == (2, 2, 16) and not nested[1, 1].any()
    np.testing.assert_array_equal(nested[0, 0], plain[0])


def test_it_is_saved_with_a_model():
    config = keras.saving.serialize_keras_object(TOKENIZER)
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    np.testing.assert_array_equal(again(TEXTS), TOKENIZER(TEXTS))
