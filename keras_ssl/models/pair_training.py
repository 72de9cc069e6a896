"""Training on pairs of images and texts, in every form that `fit` takes."""

import numpy as np
from keras import ops

from keras_ssl.tokenizers import is_text, tokenize
from keras_ssl.training import data as data_utils


class PairTraining:
    """The part of `ImageTextTask` that brings data into one form; left of `SSLTask`.

    Whatever is given becomes dicts with `"images"`, `"token_ids"` and maybe `"image_ids"`, which
    `compute_loss` reads.
    """

    def _batch(self, batch) -> dict:
        """One batch, or whole arrays, as the dict that `compute_loss` reads."""
        if isinstance(batch, (tuple, list)):
            if len(batch) == 1:
                return self._batch(batch[0])
            batch = {"images": batch[0], "texts": batch[1]}
        elif not isinstance(batch, dict):
            raise ValueError(
                "Training needs pairs: fit(images, texts), or a dataset of (images, texts) or of "
                f'dicts with the keys "images" and "texts". Received: {type(batch).__name__}'
            )
        batch = dict(batch)
        texts = batch.pop("texts", None)
        if texts is not None:
            batch["token_ids"] = self.tokenize(texts)
        elif "token_ids" in batch:
            batch["token_ids"] = self._check_ids(batch["token_ids"])
        if "images" not in batch or "token_ids" not in batch:
            raise ValueError(
                'A batch that is a dict needs the keys "images" and "texts" (or "token_ids"). '
                f"Received: keys {sorted(map(str, batch))}"
            )
        keys = ("images", "token_ids", "image_ids")
        batch = {key: batch[key] for key in keys if key in batch}
        sizes = {key: len(value) for key, value in batch.items() if len(value.shape)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"There must be as many texts as images. Received: {sizes}")
        return batch

    def tokenize(self, texts) -> np.ndarray:
        """Ids `(N, L)` or `(N, C, L)` of strings; ids stay as they are."""
        if not is_text(texts):
            return self._check_ids(texts)
        if self.tokenizer is None:
            raise ValueError(
                "This model has no tokenizer: pass `tokenizer=` when you build it, or ids in place "
                "of strings."
            )
        return self._check_ids(tokenize(texts, self.tokenizer))

    def _check_ids(self, token_ids) -> np.ndarray:
        """Ids as an array; refused where the text encoder has no such embedding.

        What a backend makes of them differs, and is never said: negative ones count from the end,
        too large ones give NaN or end the process of a GPU.
        """
        if not isinstance(token_ids, (np.ndarray, list, tuple)):
            token_ids = ops.convert_to_numpy(token_ids)
        ids = np.asarray(token_ids)
        if ids.dtype.kind not in "iuf" or ids.ndim not in (2, 3):
            raise ValueError(
                'Token ids must be whole numbers (N, L) or (N, C, L); strings go under "texts". '
                f"Received: token_ids of dtype {ids.dtype}, shape {ids.shape}"
            )
        if ids.dtype.kind == "f":
            bad = ids[~np.isfinite(ids) | (ids != np.rint(ids))]
            if bad.size:
                raise ValueError(f"Token ids must be whole numbers. Received: {bad[0]}")
            ids = ids.astype("int32")
        count = getattr(self.text_backbone, "vocabulary_size", None) or 2**31
        if ids.size and not 0 <= ids.min() <= ids.max() < count:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(
                f"Token ids must lie in [0, {count - 1}]: the text encoder's vocabulary has "
                f"{count}. Does the tokenizer belong to it? Received: the id {bad}"
            )
        return ids

    def _data(self, x, y=None):
        """Arrays as a dict of arrays, a dataset as one of such dicts."""
        if x is None:
            return None
        if y is not None:
            x = {"images": x, "texts": y}
        arrays = isinstance(x, dict) or (
            isinstance(x, (tuple, list))
            and len(x)
            and not isinstance(x[0], dict)
            and data_utils.is_array(x[0])
        )
        if arrays or data_utils.is_array(x):
            batch = self._batch(x)
            to_numpy = lambda a: a if isinstance(a, np.ndarray) else ops.convert_to_numpy(a)
            return {key: to_numpy(value) for key, value in batch.items()}
        return data_utils.mapped(x, self._batch)

    def fit(self, x=None, y=None, batch_size=None, epochs=1, *, validation_data=None, **kwargs):
        """Trains on pairs of images and texts.

        Arguments as in `SSLTask.fit`, with texts: `fit(images, texts)`, `fit({"images": images,
        "texts": texts})`, or a dataset as described at the class.
        """
        data = self._data(x, y)
        if isinstance(data, data_utils.MappedBatches) and not data.indexed:
            kwargs["shuffle"] = False  # its order is its own
        return super().fit(
            data,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=self._data(validation_data),
            **kwargs,
        )

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        """Loss on held-out pairs, with no state touched; arguments as in `fit`."""
        return super().evaluate(self._data(x, y), batch_size=batch_size, **kwargs)

    def train_on_batch(self, x, y=None, **kwargs):
        return super().train_on_batch(self._data(x, y), **kwargs)

    def test_on_batch(self, x, y=None, **kwargs):
        return super().test_on_batch(self._data(x, y), **kwargs)
