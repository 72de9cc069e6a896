"""CLIP's tokenizer on strings of many scripts: ids, cutting, refusing, decoding."""

import json

import numpy as np

from conformance_handlers.framework import Case, handler
from keras_ssl.tokenizers import CLIPTokenizer


@handler("clip_tokenizer", "tok")
def tokenizer(case: Case):
    case.config.generator_only("seed")
    texts = json.loads(str(case.input("in/texts_json")))
    lengths = case.config["context_lengths"]
    ours = CLIPTokenizer(truncate=True)
    for length in lengths:
        case.compare(f"out/ids_L{length}", CLIPTokenizer(length, truncate=True)(texts))
        key = f"out/raises_without_truncate_L{length}"
        if key in case.arrays:
            refused = [_refuses(CLIPTokenizer(length), text) for text in texts]
            case.compare(key, np.array(refused))

    def compare_json(key, values):
        """A JSON list that must be the same, element by element."""
        expected = json.loads(str(case.input(key)))
        wrong = [
            i for i, pair in enumerate(zip(values, expected, strict=True)) if pair[0] != pair[1]
        ]
        case.check(key, not wrong, f"texts {wrong} differ" if wrong else f"{len(expected)} equal")

    compare_json("out/encode_json", [ours.encode(text) for text in texts])
    compare_json("out/decode_json", [ours.decode(ours.encode(text)) for text in texts])
    plain = CLIPTokenizer(fix_text=False)
    compare_json("out/encode_without_ftfy_json", [plain.encode(text) for text in texts])
    case.compare("out/vocab_size", np.asarray(ours.vocabulary_size))
    case.compare("out/sot_eot", np.array([ours.start_id, ours.end_id], "int32"))


def _refuses(tokenizer, text) -> bool:
    try:
        tokenizer(text)
    except ValueError:
        return True
    return False
