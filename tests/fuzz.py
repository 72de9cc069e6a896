"""Broken and hostile input, at random: every input is either taken or refused in clear words.

    python tests/fuzz.py --examples 10000 [--targets images captions] [--seed 1]

Clear is a ValueError, TypeError or OSError whose message says what was received. Anything else (an
IndexError from the depths, a hang, a file that was changed) is a fault and is shown with the
smallest input that hypothesis finds. Prints the inputs tried, taken and refused.
"""

import argparse
import contextlib
import hashlib
import io
import json
import pathlib
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter

import h5py
import hypothesis
import hypothesis.extra.numpy as hnp
import keras
import numpy as np
import toy
import yaml
from hypothesis import strategies as st
from PIL import Image

from keras_ssl.backbones import ViTBackbone
from keras_ssl.callbacks import Checkpoint, LogFile
from keras_ssl.converters import from_transformers, read_state_dict, to_transformers
from keras_ssl.datasets import sources
from keras_ssl.models import MAE
from keras_ssl.runs import Embeddings, PretrainConfig
from keras_ssl.runs.pretrain import resolve
from keras_ssl.tokenizers import CLIPTokenizer
from keras_ssl.tokenizers.texts import tokenize

SECONDS = 30  # longer is a hang
counts = Counter()


@contextlib.contextmanager
def judged(name, files=()):
    """Counts an input; anything but success or a clear refusal in time goes on as an error."""
    before = [_fingerprint(path) for path in files]
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        counts[name, "taken"] += 1
    except (ValueError, TypeError, OSError) as error:
        if "Received" not in str(error):
            raise AssertionError(f"unclear: {type(error).__name__}: {error}") from error
        counts[name, "refused"] += 1
    assert time.perf_counter() - begin < SECONDS, "a hang"
    assert before == [_fingerprint(path) for path in files], "a file was changed"


def _fingerprint(path):
    files = sorted(p for p in [path, *pathlib.Path(path).rglob("*")] if p.is_file())
    return [(str(p), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


# === Material ===


@st.composite
def damaged(draw, contents):
    """One of several files' bytes with a few places changed, cut or put in; sometimes whole."""
    data = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data))) if len(data) else 0
        kind = draw(st.sampled_from(["flip", "byte", "cut", "drop", "insert", "huge"]))
        if kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=20))
        elif kind == "huge":
            data[place : place + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f" * 4]))
        elif place < len(data):
            data[place] = draw(st.integers(0, 255)) if kind == "byte" else data[place] ^ 16
    return bytes(data)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 64),
    st.sampled_from([12_000, 100_000, 10**6, 2**20 - 4]),
    st.sampled_from([2**31, 2**63, 10**30, -(2**31), 1e308, float("nan"), float("inf"), 0.5]),
    st.text(max_size=12),
    st.sampled_from(["../../x", "/etc/passwd", "float64", "mae", "\0", "con", "a" * 5000]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)


@st.composite
def changed_json(draw, content):
    """A JSON document with one to three places replaced or removed; or other text altogether."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.one_of(st.text(max_size=40), st.just("[" * 100_000), st.just("null")))
    content = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        at = content
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], (dict, list)) and at[key] and draw(st.integers(0, 4)):
                at = at[key]
                continue
            if draw(st.booleans()) and isinstance(at, dict):
                del at[key]
            else:
                at[key] = draw(VALUES)
            break
    return json.dumps(content)


class Material:
    """What is damaged: files of all kinds, made once in a temporary folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        rng = np.random.default_rng(0)
        backbone = toy.vit(num_layers=1, position_embedding="sincos", initializer="mae")
        self.model = toy.mae(backbone)
        self.model.save_to_preset(self.folder / "preset")
        to_transformers(toy.vit(num_layers=1), self.folder / "theirs")
        described = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3}
        described = json.dumps(described | {"image_std": [0.5] * 3, "rescale_factor": 1 / 255})
        (self.folder / "theirs" / "preprocessor_config.json").write_text(described)
        with h5py.File(self.folder / "other.h5", "w") as file:
            file["x"] = np.ones(16, "float32")
        self.model.compile("sgd")
        callback = Checkpoint(self.folder / "checkpoints")
        callback.set_model(self.model)
        self.checkpoint = callback.save(2).read_bytes()
        callback.save(1)
        arrays = {"a.weight": rng.random((3, 4), "float32"), "b": np.arange(5)}
        file = io.BytesIO()
        np.savez(file, **arrays)
        header = {
            "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
            "b": {"dtype": "BF16", "shape": [5], "data_offsets": [48, 58]},
        }
        self.header = json.dumps(header)
        header = self.header.encode()
        self.weights = {
            ".npz": [file.getvalue()],
            ".safetensors": [len(header).to_bytes(8, "little") + header + bytes(58)],
            ".pth": [self._torch(arrays), b"cos\nsystem\n(S'touch fuzzed'\ntR."],
        }
        Embeddings(rng.random((4, 3), "float32"), list("abcd")).save(self.folder / "e.npz")
        self.embeddings = (self.folder / "e.npz").read_bytes()
        self.images = list(self._images(rng))
        self.archives = {".zip": [self._zip()], ".tar.gz": [self._tar(), b"\x1f\x8b\x08"]}
        self.log = "epoch,loss,knn_top1\n1,2.5,nan\n2,2.25,0.5\n"

    @staticmethod
    def _torch(arrays):
        import torch

        file = io.BytesIO()
        torch.save({"model": {k: torch.tensor(v) for k, v in arrays.items()}}, file)
        return file.getvalue()

    @staticmethod
    def _images(rng):
        """Every format and colour mode that Pillow writes, down to one pixel."""
        pixels = rng.integers(0, 65536, (9, 7, 4))
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
            for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr"):
                for side in (1, 7):
                    image = Image.fromarray((pixels[:side, :side, :3] // 257).astype("uint8"))
                    if mode == "I;16":
                        image = Image.fromarray(pixels[:side, :side, 0].astype("uint16"))
                    file = io.BytesIO()
                    with contextlib.suppress(OSError, ValueError, KeyError):
                        image.convert(mode).save(file, kind)
                        yield file.getvalue()

    def _zip(self):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(3):
                archive.writestr(f"cat/{i}.png", self.images[i])
        return file.getvalue()

    def _tar(self):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for i in range(3):
                info = tarfile.TarInfo(f"cat/{i}.png")
                info.size = len(self.images[i])
                archive.addfile(info, io.BytesIO(self.images[i]))
        return file.getvalue()

    def put(self, name, content) -> pathlib.Path:
        path = self.folder / "input" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        return path


# === Targets: what is done with one input ===


def configs(m, draw):
    """Configurations of a run, as values and as YAML files."""
    names = [*PretrainConfig.__dataclass_fields__, "epoch", ""]
    values = draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=5))
    text = draw(st.one_of(st.just(yaml.safe_dump(values)), st.text(max_size=60)))
    path = m.put("config.yaml", text.encode("utf-8", "surrogateescape"))
    with judged("configs", [path]):
        resolve(PretrainConfig.from_yaml(path))


def presets(m, draw):
    """Presets whose JSON files have wrong types, paths, sizes, classes, or are something else."""
    shutil.rmtree(m.folder / "hostile", ignore_errors=True)
    folder = shutil.copytree(m.folder / "preset", m.folder / "hostile")
    name = draw(st.sampled_from(["task.json", "config.json", "preprocessor.json", "metadata.json"]))
    text = draw(changed_json((folder / name).read_text()))
    (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with judged("presets", [folder]):
        cls = MAE if name in ("task.json", "preprocessor.json") else ViTBackbone
        cls.from_preset(str(folder))


def folders(m, draw):
    """Folders in the transformers layout whose JSON files say something else."""
    shutil.rmtree(m.folder / "hostile", ignore_errors=True)
    folder = shutil.copytree(m.folder / "theirs", m.folder / "hostile")
    name = draw(st.sampled_from(["config.json", "preprocessor_config.json"]))
    text = draw(changed_json((folder / name).read_text()))
    (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with judged("folders", [folder]):
        from_transformers(folder)


def hostile_tensor(m, draw, path):
    """A tensor of an HDF5 file becomes a link, another shape, NaN, a void of any size, ..."""
    other = str(m.folder / "other.h5")
    with h5py.File(path, "a") as file:
        names = []
        file.visit(names.append)
        name = draw(st.sampled_from(names))
        kind = draw(
            st.sampled_from(["soft", "external", "virtual", "raw", "void", "shape", "nan", "gone"])
        )
        if kind == "nan":
            if isinstance(file[name], h5py.Dataset) and file[name].dtype.kind == "f":
                file[name][...] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
            return
        del file[name]
        if kind == "soft":
            file[name] = h5py.SoftLink(draw(st.sampled_from(["/", "/nothing", "/" + names[-1]])))
        elif kind == "external":
            file[name] = h5py.ExternalLink(other, draw(st.sampled_from(["/", "/x"])))
        elif kind == "virtual":
            layout = h5py.VirtualLayout((16,), "float32")
            layout[:] = h5py.VirtualSource(other, "x", (16,))
            file.create_virtual_dataset(name, layout)
        elif kind == "raw":
            file.create_dataset(name, (16,), "float32", external=[(other, 0, 64)])
        elif kind == "void":
            shape = draw(st.sampled_from([(2**30,), (2**38,), (2**20, 2**20), (0,), (0, 2**40)]))
            chunks = tuple(min(side, 2**10) or 1 for side in shape)
            file.create_dataset(
                name, shape, "float32", chunks=chunks, maxshape=(None,) * len(shape)
            )
        elif kind == "shape":
            file[name] = draw(hnp.arrays(DTYPES.filter(_storable), SHAPES))


def _storable(dtype):
    return dtype.kind in "fiubcS" and dtype.itemsize > 0


def preset_weights(m, draw):
    """Presets whose HDF5 files are damaged anywhere, or made to mislead."""
    shutil.rmtree(m.folder / "hostile", ignore_errors=True)
    folder = shutil.copytree(m.folder / "preset", m.folder / "hostile")
    name = draw(st.sampled_from(["model.weights.h5", "task.weights.h5"]))
    if draw(st.booleans()):
        hostile_tensor(m, draw, folder / name)
    else:
        (folder / name).write_bytes(draw(damaged([(folder / name).read_bytes()])))
    with judged("preset weights", [folder]):
        MAE.from_preset(str(folder))


def weight_files(m, draw):
    """.npz, .safetensors and .pth: cut, flipped, with headers that lie, with code in them."""
    suffix = draw(st.sampled_from(sorted(m.weights)))
    content = draw(damaged(m.weights[suffix]))
    if suffix == ".safetensors" and draw(st.booleans()):  # a whole header that lies
        header = draw(changed_json(m.header)).encode("utf-8", "surrogatepass")
        content = (
            len(header).to_bytes(8, "little") + header + bytes(draw(st.sampled_from([58, 60])))
        )
    path = m.put("weights" + suffix, content)
    with judged("weight files", [path]):
        for array in read_state_dict(path).values():
            assert isinstance(array, np.ndarray) and array.nbytes < 2**20


def checkpoints(m, draw):
    """The last checkpoint damaged: refused for the one before, or loads as what it was."""
    content = draw(damaged([m.checkpoint]))
    folder = m.folder / "checkpoints"
    (folder / "checkpoint-00002.keras").write_bytes(content)
    with judged("checkpoints", [folder]):
        path, done = Checkpoint.latest(folder)
        if done == 2 and content != m.checkpoint:
            loaded = keras.saving.load_model(path)
            for one, two in zip(loaded.weights, m.model.weights, strict=True):
                np.testing.assert_array_equal(toy.to_numpy(one), toy.to_numpy(two))


def images(m, draw):
    """Pictures of every format and mode, damaged: named as broken, or decoded to 8x8 RGB."""
    content = draw(damaged(m.images))
    with judged("images"):
        why = sources.why_broken(content, thorough=True)
        if why is not None:
            assert isinstance(why, str) and why
            raise ValueError(f"{why}. Received: an image")  # what `image_folder` says of it
        picture = sources.decode(content, (8, 8))
        assert picture.shape == (8, 8, 3) and picture.dtype == np.uint8


def archives(m, draw):
    """Archives of pictures, damaged."""
    suffix = draw(st.sampled_from(sorted(m.archives)))
    path = m.put("a" + suffix, draw(damaged(m.archives[suffix])))
    with judged("archives", [path]):
        found = sources.find_images(path, None, 2**20)
        assert all(not name.startswith("/") and ".." not in name for name in found.names)


TOKENIZERS = [
    CLIPTokenizer(12, truncate=cut, fix_text=fix) for cut in (True, False) for fix in (0, 1)
]
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
LONG_TEXT = st.builds(
    lambda text, count: text * count, st.text(min_size=1, max_size=5), st.integers(1, 20_000)
)


def captions(m, draw):
    """Any Unicode, lone surrogates too; empty, missing, very long; in lists of any shape."""
    one = st.one_of(ANY_TEXT, LONG_TEXT, st.none(), st.just(""), st.binary(max_size=8))
    texts = draw(
        st.one_of(ANY_TEXT, LONG_TEXT, st.lists(st.one_of(one, st.lists(one, max_size=3))))
    )
    tokenizer = draw(st.sampled_from(TOKENIZERS))
    with judged("captions"):
        ids = tokenize(texts, tokenizer)
        assert ids.dtype == np.int32 and ids.shape[-1] == 12
        assert ((ids >= 0) & (ids < tokenizer.vocabulary_size)).all()
        rows = ids.reshape(-1, 12)
        rows = rows[rows.any(axis=1)]
        assert (rows[:, 0] == tokenizer.start_id).all()
        assert (rows == tokenizer.end_id).any(axis=1).all()


DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    st.sampled_from([np.dtype(k) for k in ("O", "uint8", "float32", "f2", "?")]),
)
SHAPES = st.one_of(
    st.just((2, 8, 8, 3)),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    st.tuples(st.integers(0, 3), st.sampled_from([4, 16]), st.just(16), st.integers(0, 4)),
)


def arrays(m, draw):
    """Arrays of any dtype, byte order, shape and range, given to `predict` as images are."""
    dtype, shape = draw(DTYPES), draw(SHAPES)
    if dtype.kind == "O":
        array = np.full(shape, draw(SCALARS), dtype=object)
    else:
        array = draw(hnp.arrays(dtype, shape, fill=hnp.from_dtype(dtype)))
    with judged("arrays"):
        vectors = m.model.predict(array, verbose=0)
        assert vectors.shape[0] == len(array) and np.isfinite(vectors).all()
        assert array.shape[-1] == 3 and array.ndim == 4 and len(array)
        assert np.isfinite(array.astype("float64")).all() and array.min() >= 0


def logs(m, draw):
    """The log of a run, damaged."""
    path = m.put("log.csv", draw(damaged([m.log.encode()])))
    with judged("logs", [path]):
        assert all(isinstance(row["epoch"], int) for row in LogFile.read(path))


def embeddings(m, draw):
    """Files of embeddings, damaged."""
    path = m.put("e.npz", draw(damaged([m.embeddings])))
    with judged("embeddings", [path]):
        found = Embeddings.load(path)
        assert len(found.vectors) == len(found.names)


TARGETS = [
    *(configs, presets, folders, preset_weights, weight_files, checkpoints),
    *(images, archives, captions, arrays, logs, embeddings),
]


def fuzz(target, material, examples: int, seed: int = 0) -> None:
    """Tries a target with so many inputs; the smallest that fails is in the error's notes."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def attempt(data):
        target(material, data.draw)

    attempt()


def _frames(error):
    error = error.__cause__ or error
    return [f"  {f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]


def _notes(error):
    lines = "\n".join(getattr(error, "__notes__", [])).splitlines()
    return [f"    {line[:300]}" for line in lines if "Draw" in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000, help="for each target")
    parser.add_argument("--targets", nargs="+", choices=[t.__name__ for t in TARGETS])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        material = Material(folder)
        for target in TARGETS:
            name = target.__name__
            if options.targets and name not in options.targets:
                continue
            begin = time.perf_counter()
            try:
                fuzz(target, material, options.examples, options.seed)
            except Exception as error:
                failed.append(name)
                for fault in getattr(error, "exceptions", [error]):
                    print(f"{name}: {type(fault).__name__}: {str(fault)[:300]}")
                    traces = [f for f in _frames(fault) if "keras_ssl" in f]
                    print(*traces[-1:], *_notes(fault), sep="\n")
            name = name.replace("_", " ")
            taken, refused = counts[name, "taken"], counts[name, "refused"]
            seconds = time.perf_counter() - begin
            print(f"{name:15} {taken:6} taken {refused:6} refused {seconds:7.0f} s", flush=True)
    print(f"inputs {sum(counts.values())}, faults {len(failed)} {' '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
