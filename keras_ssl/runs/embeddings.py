"""Embeddings of a folder of pictures: made once, kept in a file, searched."""

import dataclasses
import os
import pathlib

import numpy as np

from keras_ssl.datasets import sources
from keras_ssl.datasets.folder import FolderImages
from keras_ssl.evaluation import SimilarityIndex
from keras_ssl.layers.image_converter import image_shape_of
from keras_ssl.visualization import picture_grid


@dataclasses.dataclass
class Embeddings:
    """Vectors of pictures, with the names of the files and of the model they came from.

    Attributes:
        vectors: float32 `(N, D)`.
        names: of the files, relative to `root`.
        root: the folder or archive.
        model: the preset that made them.
    """

    vectors: np.ndarray
    names: list[str]
    root: str = ""
    model: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> str:
        """The file of a row."""
        return os.path.join(self.root, self.names[row])

    def search(self, vectors, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The rows most like each query, by cosine.

        Args:
            vectors: `(Q, D)`, of the same model.
            count: how many; at most all.

        Returns:
            `(rows, similarity)`, int64 and float32 `(Q, count)`, best first. Exact, by NumPy, or
            by faiss where it is installed and there are many vectors (`SimilarityIndex`).
        """
        return SimilarityIndex(self.vectors).search(vectors, count)

    def save(self, path: str | os.PathLike) -> None:
        """Writes `.npz`, or `.parquet` (columns `name`, `embedding`) where pyarrow is installed.

        Bytes of a name that are no UTF-8 become `\\xff` in `.parquet`.
        """
        path = pathlib.Path(path)
        kind = _kind(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".unfinished-{os.getpid()}{path.suffix}")
        if kind == ".npz":
            np.savez(
                unfinished,
                vectors=self.vectors,
                names=np.array(self.names),
                root=np.array(self.root),
                model=np.array(self.model),
            )
        else:
            arrow, parquet = _pyarrow()
            width = self.vectors.shape[1]
            flat = arrow.array(self.vectors.reshape(-1))
            columns = {
                "name": arrow.array(map(sources.display_name, self.names), arrow.string()),
                "embedding": arrow.FixedSizeListArray.from_arrays(flat, width),
            }
            table = arrow.table(columns).replace_schema_metadata(
                {"root": os.fsencode(self.root), "model": os.fsencode(self.model)}
            )
            parquet.write_table(table, unfinished)
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Embeddings":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no file of embeddings.
        """
        path = pathlib.Path(path)
        kind = _kind(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no such file. Received: {path}")
        try:
            if kind == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    return cls(
                        file["vectors"],
                        file["names"].tolist(),
                        str(file["root"]),
                        str(file["model"]),
                    )
            _, parquet = _pyarrow()
            table = parquet.read_table(path)
            notes = table.schema.metadata or {}
            vectors = table["embedding"].combine_chunks()
            return cls(
                vectors.values.to_numpy(zero_copy_only=False).reshape(len(vectors), -1),
                table["name"].to_pylist(),
                os.fsdecode(notes.get(b"root", b"")),
                os.fsdecode(notes.get(b"model", b"")),
            )
        except Exception as error:  # whatever numpy, zipfile and arrow make of a damaged file
            raise ValueError(
                f"This is no file of embeddings ({error}). Received: {path}"
            ) from error


def embed_folder(
    model, source: str | os.PathLike, batch_size: int = 128, model_name: str = "", say=None
) -> Embeddings:
    """Embeddings of every picture below a folder or in an archive.

    Args:
        model: a task with `predict`.
        source: a folder or an archive. Files that cannot be read are named in a warning and left
            out.
        batch_size: pictures at a time.
        model_name: what to note as the model's name: the preset.
        say: called with a line now and then.

    Returns:
        An `Embeddings`, in the order of the names.

    Example:

    ```python
    found = keras_ssl.runs.embed_folder(model, "photos")
    found.save("photos.npz")
    rows, similarity = found.search(model.predict(picture[None]), count=5)
    ```
    """
    images = FolderImages(source, model_image_size(model), labels=None)
    piece = max(1, 1024 // batch_size) * batch_size
    vectors = []
    for start in range(0, len(images), piece):
        part = images[start : start + piece]
        vectors.append(model.predict(part, batch_size=batch_size, verbose=0))
        if say is not None:
            say(f"{min(start + piece, len(images))} of {len(images)} pictures")
    vectors = np.concatenate(vectors)
    # What turned out broken while decoding was replaced by another picture.
    kept = [row for row, name in enumerate(images.file_names) if name not in images.broken_files]
    return Embeddings(
        vectors[kept],
        [images.file_names[row] for row in kept],
        os.path.abspath(source),
        model_name,
    )


def embed_pictures(model, paths) -> np.ndarray:
    """Vectors `(N, D)` of picture files, read and cropped as `embed_folder` does.

    Args:
        model: a task with `predict`.
        paths: of picture files.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is no picture.
    """
    pictures = [_read_picture(path, model_image_size(model)) for path in paths]
    return model.predict(np.stack(pictures), batch_size=min(128, len(pictures)), verbose=0)


def embed_text(model, text: str) -> np.ndarray:
    """The vector `(1, D)` of a text, in the space of the model's pictures.

    Raises:
        ValueError: the model knows no text.
    """
    if not hasattr(model, "encode_text"):
        raise ValueError(
            "Only image-text models (CLIP, SigLIP, ALIGN) understand text; search with a picture. "
            f"Received: a {type(model).__name__}"
        )
    return model.encode_text([text])


def result_grid(found: Embeddings, rows, query: str | os.PathLike | None = None, side: int = 128):
    """The pictures of some rows side by side, after the query where there is one.

    Args:
        found: embeddings whose `root` is a folder that is still there.
        rows: of `found`, as `search` gives them for one query.
        query: a picture file.
        side: pixels of each picture.

    Returns:
        A `PIL.Image.Image`.
    """
    paths = [] if query is None else [query]
    paths += [found.path(row) for row in rows]
    pictures = np.stack([_read_picture(path, (side, side)) for path in paths])
    return picture_grid(pictures, columns=len(pictures))


def _read_picture(path, size):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no such picture. Received: {path}")
    try:
        return sources.decode(os.fspath(path), size, "bilinear", True, (255, 255, 255))
    except sources.DECODE_ERRORS as error:
        raise ValueError(
            f"The picture cannot be read: {sources.describe(error)}. Received: {path}"
        ) from error


def model_image_size(model) -> tuple[int, int]:
    """The size in which a model takes pictures; 224 where any will do."""
    shape = image_shape_of(getattr(model, "backbone", model))
    return (shape[0] or 224, shape[1] or 224)


def _kind(path):
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"Embeddings are kept in .npz or .parquet files. Received: {path}")
    return path.suffix


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need `pip install pyarrow`; .npz does not.") from error
    return pyarrow, pyarrow.parquet
