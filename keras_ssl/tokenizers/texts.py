"""Captions as users give them: strings, several for an image, or ids."""

import numpy as np


def is_text(texts) -> bool:
    """Whether these are strings (a list, nested lists, an array), and not ids."""
    if isinstance(texts, (str, bytes)):
        return True
    if isinstance(texts, (list, tuple)):
        return len(texts) > 0 and is_text(texts[0])
    dtype = str(getattr(texts, "dtype", ""))
    return dtype.startswith(("<U", "|S", "object", "string", "<dtype: 'string'"))


def tokenize(texts, tokenizer) -> np.ndarray:
    """Ids of captions by any tokenizer.

    Args:
        texts: strings `(N,)`, or `(N, C)` for C captions of each image (lists of unequal length are
            filled up with empty captions); `""` and `None` are missing captions and become rows
            of zeros, which the losses leave out.
        tokenizer: callable from a list of strings to ids `(N, L)`, or to a dict with the key
            `"token_ids"` (keras-hub's preprocessors).

    Returns:
        int32 `(N, L)` or `(N, C, L)`.
    """
    if hasattr(texts, "numpy"):
        texts = texts.numpy()
    texts = [texts] if isinstance(texts, (str, bytes)) else list(texts)
    nested = [t for t in texts if isinstance(t, (list, tuple, np.ndarray))]
    if not nested:
        flat, shape = texts, ()
    else:
        width = max(len(t) for t in nested)
        rows = [
            list(t) if not isinstance(t, (str, bytes)) and t is not None else [t] for t in texts
        ]
        flat = [t for row in rows for t in (row + [None] * width)[:width]]
        shape = (width,)
    flat = [
        "" if t is None else t.decode(errors="replace") if isinstance(t, bytes) else str(t)
        for t in flat
    ]
    # One caption at least: a tokenizer may not take an empty list.
    ids = tokenizer(flat or [""])
    ids = ids["token_ids"] if isinstance(ids, dict) else ids
    if hasattr(ids, "numpy"):
        ids = ids.numpy()
    ids = np.array(ids, "int32")[: len(flat)]
    ids[[not t.strip() for t in flat]] = 0
    return ids.reshape(len(texts), *shape, ids.shape[-1])
