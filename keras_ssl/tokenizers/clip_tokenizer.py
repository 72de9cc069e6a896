"""CLIP's byte-pair tokenizer, with the vocabulary that OpenAI released.

Own code, because keras-hub's `CLIPTokenizer` neither repairs text (ftfy, HTML entities) nor ships
the vocabulary, and composes accents first: its ids differ from CLIP's on such strings.
"""

import functools
import gzip
import heapq
import html
from collections.abc import Iterable, Sequence
from importlib import resources

import ftfy
import keras
import numpy as np
import regex

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# 49,152 entries were planned: 256 bytes, 256 bytes that end a word, and merges; then two specials.
_NUM_MERGES = 49152 - 256 - 2
_PIECES = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_SPACES = regex.compile(r"\s+")


@functools.cache
def _byte_symbols() -> tuple[str, ...]:
    """A printable character for each byte, so that a vocabulary can be a text file (GPT-2).

    Printable bytes stand for themselves, the others for the characters from 256 on.
    """
    spare = iter(range(256, 512))
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


@functools.cache
def _vocabulary() -> tuple[tuple[str, ...], dict[tuple[str, str], int]]:
    """Tokens by id, and the rank of every merge."""
    data = resources.files(__package__).joinpath("data/bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(data).decode("utf-8").split("\n")[1 : _NUM_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    symbols = _byte_symbols()
    # The printable bytes come first in CLIP's vocabulary.
    symbols = sorted(symbols, key=lambda s: (ord(s) > 255, ord(s)))
    tokens = [*symbols, *(s + _WORD_END for s in symbols), *("".join(m) for m in merges)]
    return (*tokens, START, END), {merge: rank for rank, merge in enumerate(merges)}


@functools.cache
def _tokens(num_merges: int) -> tuple[str, ...]:
    """Tokens by id, of the vocabulary that has the first merges only."""
    return (*_vocabulary()[0][: 512 + num_merges], START, END)


@functools.cache
def _ids(num_merges: int) -> dict[str, int]:
    return {token: i for i, token in enumerate(_tokens(num_merges))}


@functools.lru_cache(maxsize=2**17)
def _piece_ids(piece: str, num_merges: int) -> tuple[int, ...]:
    """Ids of one piece of text (a word, a digit, a run of signs), by merging pairs of symbols."""
    ids = _ids(num_merges)
    if piece in (START, END):
        return (ids[piece],)
    symbols = [_byte_symbols()[byte] for byte in piece.encode("utf-8", "replace")]
    symbols[-1] += _WORD_END
    return tuple(ids[symbol] for symbol in _merged(symbols, num_merges))


def _merged(symbols: list[str], num_merges: int) -> list[str]:
    """Merges pairs of neighbours, the pair of the lowest rank first and wherever it stands.

    By a heap: a word of n symbols takes n log n steps, whoever made it n long.
    """
    ranks, end = _vocabulary()[1], len(symbols)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    heap = []

    def put(left):
        if left >= 0 and after[left] < end:
            pair = symbols[left], symbols[after[left]]
            rank = ranks.get(pair, _NUM_MERGES)
            if rank < num_merges:
                heapq.heappush(heap, (rank, left, pair))

    for left in range(end - 1):
        put(left)
    while heap:
        rank, merged = heap[0][0], []
        while heap and heap[0][0] == rank:  # all of them, before what they bring about
            _, left, pair = heapq.heappop(heap)
            right = after[left]
            if right < end and (symbols[left], symbols[right]) == pair:  # still there
                symbols[left], symbols[right] = "".join(pair), None
                after[left] = after[right]
                if after[left] < end:
                    before[after[left]] = left
                merged.append(left)
        for left in merged:
            if symbols[left] is not None:
                put(before[left])
                put(left)
    return [symbol for symbol in symbols if symbol is not None]


@keras.saving.register_keras_serializable(package="keras_ssl")
class CLIPTokenizer:
    """Byte-pair tokenizer of CLIP: the ids of the released models, for every string.

    Text is repaired (ftfy, HTML entities), white space collapsed, lower-cased, cut into words,
    single digits and runs of signs, and each of these into byte pairs. A sequence is
    `[start, ids, end, 0, 0, ...]`.

    Args:
        context_length: ids of a sequence, start and end included.
        truncate: cut what is too long and put the end token last; `False` refuses it.
        fix_text: repair broken characters ("mojibake") with ftfy, as the official code does where
            ftfy is installed.
        num_merges: how many of the vocabulary's merges are used, from the most frequent on; `None`
            is all 48,894. With fewer, rare words are spelt in pieces, and a small model trained
            from scratch needs no vector for each of 49,408 ids.

    Call arguments:
        texts: a string, or a sequence of strings.

    Returns:
        int32 `(N, context_length)`.

    Raises:
        ValueError: a text is too long and `truncate` is `False`; numbers out of range.

    Example:

    >>> tokenizer = CLIPTokenizer(context_length=8)
    >>> tokenizer(["a photo of a cat"])
    array([[49406,   320,  1125,   539,   320,  2368, 49407,     0]], dtype=int32)
    >>> tokenizer.decode([320, 2368])
    'a cat '

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        2021, section 2.4; Sennrich et al., Neural Machine Translation of Rare Words with Subword
        Units, 2016.
    """

    def __init__(
        self,
        context_length: int = 77,
        truncate: bool = False,
        fix_text: bool = True,
        num_merges: int | None = None,
    ):
        if not isinstance(context_length, int) or context_length < 3:
            raise ValueError(
                "`context_length` must be an int of at least 3: start, one token, end. "
                f"Received: context_length={context_length}"
            )
        if num_merges is not None and not 0 <= num_merges <= _NUM_MERGES:
            raise ValueError(
                f"`num_merges` must be `None` or an int from 0 to {_NUM_MERGES}. "
                f"Received: num_merges={num_merges}"
            )
        self.num_merges = num_merges
        self._merges = _NUM_MERGES if num_merges is None else num_merges
        self.context_length = context_length
        self.truncate = bool(truncate)
        self.fix_text = bool(fix_text)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: 514 and the merges; 49408 with all of them."""
        return len(_tokens(self._merges))

    @property
    def start_id(self) -> int:
        """The id that begins a sequence."""
        return _ids(self._merges)[START]

    @property
    def end_id(self) -> int:
        """The id that ends a sequence; the largest of all."""
        return _ids(self._merges)[END]

    def clean(self, text: str) -> str:
        """The text that is cut into tokens: repaired, white space collapsed, lower case."""
        if self.fix_text:
            text = ftfy.fix_text(text)
        text = html.unescape(html.unescape(text)).strip()
        return _SPACES.sub(" ", text).strip().lower()

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, without start and end."""
        pieces = _PIECES.findall(self.clean(text))
        return [i for piece in pieces for i in _piece_ids(piece, self._merges)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; every word is followed by a space, as in the official code."""
        tokens = _tokens(self._merges)
        text = "".join(tokens[int(i)] for i in ids)
        byte_of = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
        data = bytes(byte_of[symbol] for symbol in text)
        return data.decode("utf-8", errors="replace").replace(_WORD_END, " ")

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.zeros((len(texts), self.context_length), "int32")
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(str(text))
            room = self.context_length - 2
            if len(ids) > room and not self.truncate:
                raise ValueError(
                    f"A text has {len(ids)} tokens and there is room for {room}. Shorten it, or "
                    f"pass truncate=True. Received: {str(text)[:80]!r}"
                )
            ids = [self.start_id, *ids[:room], self.end_id]
            row[: len(ids)] = ids
        return rows

    def get_config(self) -> dict:
        return {
            "context_length": self.context_length,
            "truncate": self.truncate,
            "fix_text": self.fix_text,
            "num_merges": self.num_merges,
        }

    @classmethod
    def from_config(cls, config) -> "CLIPTokenizer":
        return cls(**config)
