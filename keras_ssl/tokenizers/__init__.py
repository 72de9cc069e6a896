"""From strings to token ids."""

from keras_ssl.tokenizers.clip_tokenizer import CLIPTokenizer
from keras_ssl.tokenizers.texts import is_text, tokenize

__all__ = ["CLIPTokenizer", "is_text", "tokenize"]
