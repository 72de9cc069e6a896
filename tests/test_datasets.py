"""Data: the embedded pictures, image folders and archives, tensorflow_datasets."""

import hashlib
import importlib.util
import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_ssl
from keras_ssl import datasets
from keras_ssl.datasets import sources
from keras_ssl.runs import default_image_size, load_data

DATA = Path(datasets.__file__).parent / "data"
COUNTS = {
    "noto": 1689,
    "noto_v1": 1272,
    "fluent": 1590,
    "fluent_flat": 1594,
    "twemoji": 1943,
    "emojione": 1409,
}


@pytest.fixture(scope="module")
def emoji():
    return datasets.load_emoji()


@pytest.fixture(scope="module")
def index():
    with zipfile.ZipFile(DATA / "emoji64.zip") as archive:
        return json.loads(archive.read("index.json"))


# --- the embedded pictures


def test_emoji_counts_and_types(emoji):
    assert len(emoji) == sum(COUNTS.values()) == 9497
    styles, counts = np.unique(emoji.styles, return_counts=True)
    assert dict(zip(styles.tolist(), counts.tolist(), strict=True)) == COUNTS
    assert emoji.images.shape == (9497, 64, 64, 4) and emoji.images.dtype == np.uint8
    assert emoji.labels.dtype == np.int32 and emoji.concept_ids.dtype == np.int32
    assert set(emoji.concept_ids.tolist()) == set(range(1966))
    assert (DATA / "emoji64.zip").stat().st_size < 12_000_000


def test_emoji_pixels_are_those_that_were_drawn(emoji, index):
    for entry in index["styles"]:
        images = emoji.images[emoji.styles == entry["name"]]
        assert hashlib.sha256(images.tobytes()).hexdigest() == entry["sha256"]
    assert not emoji.images[emoji.images[..., 3] == 0].any()
    covered = (emoji.alphas > 0).mean((1, 2))
    assert covered.min() > 0.04  # no picture is blank
    assert np.array_equal(emoji.alphas, emoji.images[..., 3])


def test_emoji_labels(emoji):
    assert emoji.class_names == datasets.EMOJI_GROUPS and len(emoji.class_names) == 9
    assert np.array_equal(np.array(emoji.class_names)[emoji.labels], emoji.groups)
    assert all(emoji.captions) and all(emoji.subgroups) and all(emoji.codes)
    # A concept has one caption, group and subgroup, and one picture a style.
    for field in ("captions", "groups", "subgroups", "codes"):
        assert len({*zip(emoji.concept_ids.tolist(), getattr(emoji, field), strict=True)}) == 1966
    assert len(set(emoji.captions)) == 1966
    assert len({*zip(emoji.concept_ids.tolist(), emoji.styles, strict=True)}) == 9497


def test_emoji_captions_read_naturally(emoji):
    captions = dict(zip(emoji.codes.tolist(), emoji.captions.tolist(), strict=True))
    assert captions["1f600"] == "grinning face"
    assert captions["1f6cd"] == "shopping bags"
    assert captions["1f452"] == "woman's hat"
    assert captions["1f1f3-1f1f1"] == "flag of the Netherlands"
    assert captions["1f1e8-1f1ee"] == "flag of Côte d'Ivoire"
    assert captions["1f468-200d-1f9b0"] == "man with red hair"
    assert captions["1f5fd"] == "Statue of Liberty"


def test_emoji_has_no_skin_tones(emoji, index):
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
    assert not any(tones & set(code.split("-")) for code in set(emoji.codes))
    names = [name for entry in index["styles"] for name in entry["icons"]]
    assert not any("skin-tone" in name or "-tone" in name for name in names)


def test_emoji_old_names_found_their_concept(emoji, index):
    # Emoji One and Noto v1 use older names; what they show was checked by eye.
    codes = {
        (entry["name"], name): index["concepts"][concept]["code"]
        for entry in index["styles"]
        for name, concept in zip(entry["icons"], entry["concepts"], strict=True)
    }
    assert codes["emojione", "bear-face"] == "1f43b"
    assert codes["emojione", "man-in-suit-levitating"] == codes["noto", "person-in-suit-levitating"]
    assert codes["noto_v1", "direct-hit"] == codes["twemoji", "bullseye"] == "1f3af"
    assert codes["emojione", "flag-for-clipperton-island"] == "1f1e8-1f1f5"
    assert codes["emojione", "flag-for-swaziland"] == codes["twemoji", "flag-eswatini"]
    # The same concept looks alike in two styles of one maker, far above chance.
    flat, solid = (emoji.select(emoji.styles == name) for name in ("fluent_flat", "fluent"))
    _, i, j = np.intersect1d(flat.concept_ids, solid.concept_ids, return_indices=True)
    a, b = (
        data.alphas[rows].reshape(len(rows), 16, 4, 16, 4).mean((2, 4)).reshape(len(rows), -1)
        for data, rows in ((flat, i), (solid, j))
    )
    a, b = a - a.mean(0), b - b.mean(0)

    def cosine(x, y):
        return ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()

    assert cosine(a, b) > cosine(a, np.roll(b, 7, axis=0)) + 0.3


def test_emoji_selection_and_size():
    data = datasets.load_emoji(styles="noto", groups=["Food & Drink", "Activities"], image_size=32)
    assert data.images.shape == (132 + 85, 32, 32, 4)
    assert set(data.groups) == {"Food & Drink", "Activities"} and set(data.styles) == {"noto"}
    full = datasets.load_emoji(styles="noto", groups=["Food & Drink", "Activities"])
    coarse = full.alphas.reshape(-1, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(coarse - data.alphas).mean() < 4
    assert "217 pictures 32x32x4" in repr(data)


def test_emoji_background(emoji):
    rows = emoji.select(slice(0, 300))
    exact = rows.images.astype("float64")
    alpha = exact[..., 3:] / 255
    under = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), "uint8")
    for background, below in (
        ((255, 0, 10), np.array([255.0, 0, 10])),
        (under[0], under[0].astype("float64")),
        (under, under.astype("float64")),
        (lambda count, size: under, under.astype("float64")),
    ):
        images = datasets.composite(rows.images, background)
        assert images.dtype == np.uint8
        assert np.abs(images - (alpha * exact[..., :3] + (1 - alpha) * below)).max() <= 0.5 + 1e-9
    white = datasets.load_emoji(styles="emojione", background=(255, 255, 255))
    assert white.images.shape == (1409, 64, 64, 3)
    assert (white.images[white.alphas == 0] == 255).all()


def test_emoji_splits(emoji):
    train, test = emoji.split(held_out_style="twemoji")
    assert set(test.styles) == {"twemoji"} and len(train) + len(test) == len(emoji)
    train, test = emoji.split(test_fraction=0.2)
    assert not set(train.codes) & set(test.codes)
    assert 0.17 < len(set(test.codes)) / 1966 < 0.23
    again = datasets.load_emoji(styles="noto").split(test_fraction=0.2)[1]
    assert set(again.codes) <= set(test.codes)  # the side does not depend on what was loaded
    other = emoji.split(test_fraction=0.2, seed=1)[1]
    assert set(other.codes) != set(test.codes)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: datasets.load_emoji(styles="apple"), "styles must be of.*Received"),
        (lambda d: datasets.load_emoji(groups=["Animals"]), "groups must be of.*Received"),
        (lambda d: datasets.load_emoji(image_size=0), "image_size must be a positive int"),
        (lambda d: datasets.composite(d.images[:2], (1, 2)), "background must be a colour"),
        (lambda d: datasets.composite(d.images[:2], (0, 0, 256)), r"must lie in \[0, 255\]"),
        (lambda d: datasets.composite(d.images[:2, ..., :3], (0, 0, 0)), "RGBA images"),
        (lambda d: d.split(), "either held_out_style or test_fraction"),
        (lambda d: d.split(test_fraction=2), r"must lie in \(0, 1\)"),
        (
            lambda d: d.select(d.styles == "noto").split(held_out_style="twemoji"),
            "One part of the split is empty",
        ),
    ],
)
def test_emoji_refuses(emoji, call, message):
    with pytest.raises(ValueError, match=message):
        call(emoji)


def test_emoji_licences_ship():
    text = (DATA / "ATTRIBUTION.md").read_text("utf-8")
    for style, count in COUNTS.items():
        assert f"`{style}` | {count:,}" in text
    licences = "".join(file.read_text("utf-8") for file in (DATA / "licenses").iterdir())
    for words in ("Apache License", "Attribution 4.0 International", "Microsoft Corporation"):
        assert words in licences


def test_emoji_tool_builds_the_same_bytes_twice(tmp_path, emoji, index):
    path = Path(keras_ssl.__file__).parent.parent / "tools" / "build_emoji.py"
    spec = importlib.util.spec_from_file_location("build_emoji", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.COLUMNS = 3  # small sheets, so that encoding takes no time
    images, names, styles = [], [], []
    for title, style in tool.NPZ_STYLES.items():
        entry = next(entry for entry in index["styles"] if entry["name"] == style)
        images.append(emoji.images[emoji.styles == style][:3])
        names += entry["icons"][:3][::-1]
        styles += [title] * 3
    images = np.concatenate([part[::-1] for part in images])
    np.savez(tmp_path / "in.npz", image=images, name=names, style=styles)
    (tmp_path / "emoji.json").write_text("[]")
    source = ["--from-npz", str(tmp_path / "in.npz"), "--emoji-json", str(tmp_path / "emoji.json")]
    for name in ("a.zip", "b.zip"):
        tool.main([*source, "--output", str(tmp_path / name)])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        built = json.loads(archive.read("index.json"))
        sheet = np.asarray(Image.open(io.BytesIO(archive.read("noto.webp"))).convert("RGBA"))
    noto = built["styles"][0]
    assert sorted(noto["icons"]) == sorted(names[:3])
    for column, name in enumerate(noto["icons"]):
        drawn = sheet[:64, 64 * column : 64 * column + 64]
        assert np.array_equal(drawn * (drawn[..., 3:] > 0), images[names.index(name)])


# --- folders


def picture(seed, size=(24, 32)):
    """A smooth coloured picture (height, width, 3) that survives JPEG."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(x / w + p) + np.cos(y / w - p) for w, p in rng.uniform(4, 9, (3, 2))]
    return np.clip(np.stack(waves, -1) * 55 + 127, 0, 255).astype("uint8")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for label, kind in enumerate(["cat", "dog", "été"]):
        (root / kind / "more").mkdir(parents=True)
        for i in range(4):
            place = root / kind / ("more" if i == 3 else "") / f"{i}.{'jpg' if i % 2 else 'png'}"
            Image.fromarray(picture(10 * label + i)).save(place)
    (root / "notes.txt").write_text("no image")
    (root / "cat" / "._0.png").write_bytes(b"left by macOS")
    return root


BACKENDS = ["grain", "tf.data"]


def collect(dataset):
    batches = [tuple(np.asarray(part) for part in batch) for batch in dataset]
    return tuple(np.concatenate(column) for column in zip(*batches, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_folder(folder, backend):
    dataset = datasets.image_folder(folder, 16, batch_size=5, backend=backend)
    assert len(dataset) == 3 and dataset.class_names == ("cat", "dog", "été")
    assert dataset.file_paths[:4] == ["cat/0.png", "cat/1.jpg", "cat/2.png", "cat/more/3.jpg"]
    images, labels = collect(dataset)
    assert images.shape == (12, 16, 16, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32 and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.broken_files == {}
    expected = Image.fromarray(picture(0)).crop((4, 0, 28, 24)).resize((16, 16), 2)
    assert np.abs(images[0].astype(int) - np.asarray(expected)).max() <= 4  # borders
    without = datasets.image_folder(folder, (8, 20), labels=None, backend=backend)
    (batch,) = list(without)
    assert np.asarray(batch).shape == (12, 8, 20, 3) and without.class_names == ()
    dropped = datasets.image_folder(folder, 16, batch_size=5, drop_remainder=True, backend=backend)
    assert len(dropped) == len(list(dropped)) == 2
    with pytest.raises(ValueError, match="only 12 images"):
        datasets.image_folder(folder, 16, batch_size=13, drop_remainder=True, backend=backend)


def test_image_folder_order(folder):
    orders = {}
    for backend in BACKENDS:
        for seed in (1, 2):
            dataset = datasets.image_folder(
                folder, 8, batch_size=4, shuffle=True, seed=seed, backend=backend
            )
            epochs = [collect(dataset)[0] for _ in range(2)]
            assert not np.array_equal(*epochs)  # every epoch has its own order
            assert sorted(map(bytes, epochs[0])) == sorted(map(bytes, epochs[1]))
            orders[backend, seed] = epochs
    for seed in (1, 2):
        assert np.array_equal(orders["grain", seed], orders["tf.data", seed])
    assert not np.array_equal(orders["grain", 1], orders["grain", 2])


def toy_model(with_labels):
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss if with_labels else "mse")
    return model


@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_on_a_folder(folder, backend):
    dataset = datasets.image_folder(folder, 16, batch_size=5, shuffle=True, seed=0, backend=backend)
    model = toy_model(True)
    history = model.fit(dataset, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    unlabelled = datasets.image_folder(folder, 16, batch_size=5, labels=None, backend=backend)
    assert model.predict(unlabelled, verbose=0).shape == (12, 3)


def test_fit_on_arrays(folder):
    images, labels, names = datasets.load_arrays(folder, 16, verbose=False)
    assert images.shape == (12, 16, 16, 3) and names == ("cat", "dog", "été")
    model = toy_model(True)
    assert np.isfinite(model.fit(images, labels, batch_size=5, verbose=0).history["loss"]).all()
    for backend in BACKENDS:
        piped = collect(datasets.image_folder(folder, 16, backend=backend))
        assert np.array_equal(piped[0], images) and np.array_equal(piped[1], labels)


def test_labels(folder, tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir()
    Image.fromarray(picture(0)).save(loose / "a.png")
    assert datasets.load_arrays(loose, verbose=False).labels is None
    with pytest.raises(ValueError, match="every image in a folder.*'a.png'"):
        datasets.load_arrays(loose, labels="inferred", verbose=False)
    with pytest.raises(ValueError, match="labels must be"):
        datasets.load_arrays(loose, labels="yes", verbose=False)
    names = ["all/train/x/1.png", "all/train/y/2.png", "all/test/x/3.png"]
    labels, classes = sources.label_by_folder(names, "auto", "root")
    assert labels.tolist() == [0, 1, 0] and classes == ("x", "y")
    with pytest.raises(ValueError, match="are splits, not classes"):
        sources.label_by_folder(names, "inferred", "root")


# --- broken files


@pytest.fixture
def damaged(folder):
    (folder / "cat" / "empty.jpg").write_bytes(b"")
    (folder / "cat" / "text.png").write_text("this is no image")
    whole = (folder / "dog" / "1.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "trailing.jpg").write_bytes(whole + b"rubbish after the end")  # fine
    (folder / "été" / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "été" / "linked.png").symlink_to(folder / "cat" / "0.png")  # fine
    (folder / "dog" / "round").symlink_to(folder, target_is_directory=True)  # a loop
    return folder


BROKEN = {"cat/empty.jpg", "cat/text.png", "dog/cut.jpg", "été/nowhere.png"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_broken_files_are_named_and_left_out(damaged, backend):
    with pytest.warns(datasets.BrokenImageWarning, match="4 of 18 image files") as caught:
        dataset = datasets.image_folder(damaged, 16, batch_size=7, backend=backend)
    assert len(caught) == 1 and all(name in str(caught[0].message) for name in BROKEN)
    assert set(dataset.broken_files) == BROKEN
    images, labels = collect(dataset)
    assert len(images) == len(dataset.file_paths) == 14
    assert np.bincount(labels).tolist() == [4, 5, 5]


def test_broken_files_are_refused(damaged):
    with pytest.raises(ValueError, match="4 of 18 image files cannot be read") as error:
        datasets.image_folder(damaged, 16, errors="raise")
    assert all(name in str(error.value) for name in BROKEN)
    with pytest.raises(ValueError, match="cat/empty.jpg"):
        datasets.load_arrays(damaged, 16, errors="raise", verbose=False)
    with pytest.warns(datasets.BrokenImageWarning, match="4 of 18"):
        images, labels, _ = datasets.load_arrays(damaged, 16, verbose=False)
    assert len(images) == len(labels) == 14
    assert set(datasets.find_broken_images(damaged, verbose=False)) == BROKEN


@pytest.mark.parametrize("backend", BACKENDS)
def test_file_that_breaks_only_while_decoding(folder, backend):
    # Header and end are fine, the middle is not: only decoding tells.
    content = bytearray((folder / "dog" / "0.png").read_bytes())
    content[60:90] = bytes(30)
    (folder / "dog" / "0.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = datasets.image_folder(folder, 16, batch_size=5, backend=backend)
    with pytest.warns(datasets.BrokenImageWarning, match="dog/0.png cannot be read"):
        images, labels = collect(dataset)
    assert list(dataset.broken_files) == ["dog/0.png"] and len(images) == 12
    assert np.array_equal(images[4], images[5])  # the next one stands in
    strict = datasets.image_folder(folder, 16, errors="raise", backend=backend)
    with pytest.raises(Exception, match="dog/0.png cannot be read"):
        collect(strict)


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder.*Received"):
        datasets.image_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="There are no files"):
        datasets.image_folder(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"None of the 1 files is an image.*\.txt"):
        datasets.image_folder(tmp_path)
    with pytest.raises(ValueError, match="must be a folder or an archive"):
        datasets.image_folder(tmp_path / "a.txt")
    (tmp_path / "b.png").write_bytes(b"")
    for read in (datasets.image_folder, datasets.load_arrays):
        with pytest.raises(ValueError, match="1 of 1 image files cannot be read; none is left"):
            read(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"errors": "ignore"},
        {"interpolation": "magic"},
        {"image_size": -1},
        {"image_size": (3, 4, 5)},
        {"batch_size": 0},
        {"backend": "torch"},
        {"background": (0, 0, 999)},
    ],
)
def test_bad_options(folder, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}.*Received"):
        datasets.image_folder(folder, **options)


# --- every kind of image


def save(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def test_image_kinds():
    rgb = picture(1)
    image = Image.fromarray(rgb)
    grey = np.asarray(image.convert("L"))
    near = {
        "palette": (image.quantize(256), "PNG", rgb, 24),
        "cmyk": (image.convert("CMYK"), "JPEG", rgb, 24),
        "grey": (image.convert("L"), "PNG", grey[..., None], 0),
        "grey jpeg": (image.convert("L"), "JPEG", grey[..., None], 12),
        "16 bit": (Image.fromarray(grey.astype("uint16") * 257), "PNG", grey[..., None], 0),
        "32 bit": (Image.fromarray(grey.astype("int32") * 257), "TIFF", grey[..., None], 0),
        "float": (Image.fromarray(grey.astype("float32") / 255), "TIFF", grey[..., None], 0),
        "webp": (image, "WEBP", rgb, 60),
        "gif": (image, "GIF", rgb, 60),
        "bmp": (image, "BMP", rgb, 0),
        "ppm": (image, "PPM", rgb, 0),
    }
    for kind, (picture_, suffix, expected, tolerance) in near.items():
        decoded = sources.decode(save(picture_, suffix), None)
        assert decoded.shape == (24, 32, 3) and decoded.dtype == np.uint8, kind
        assert np.abs(decoded.astype(int) - expected).max() <= tolerance, kind


def test_transparency_lies_on_the_background():
    rgba = np.dstack([picture(2), np.zeros((24, 32), "uint8")])
    rgba[:12, :, 3] = 255
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).quantize(64, method=2)):
        decoded = sources.decode(save(image, "PNG"), None, background=(1, 2, 3))
        assert (decoded[12:] == (1, 2, 3)).all()
        assert np.abs(decoded[:12].astype(int) - rgba[:12, :, :3]).mean() < 12


def test_exif_rotation():
    image = Image.fromarray(picture(3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the picture is upright after a quarter turn clockwise
    upright = sources.decode(save(image, "PNG", exif=exif), None)
    assert np.array_equal(upright, np.rot90(picture(3), -1))


def test_large_jpeg_is_decoded_small_without_visible_change():
    large = Image.fromarray(picture(4, (32, 48))).resize((960, 640), Image.Resampling.BICUBIC)
    decoded = sources.decode(save(large, "JPEG", quality=95), (32, 48))
    exact = np.asarray(large.resize((48, 32), Image.Resampling.BILINEAR))
    assert np.abs(decoded.astype(int) - exact).max() < 6


def test_crop_or_stretch():
    image = save(Image.fromarray(picture(5, (40, 80))), "PNG")
    cropped = sources.decode(image, (20, 20), "bicubic")
    stretched = sources.decode(image, (20, 20), crop=False)
    assert cropped.shape == stretched.shape == (20, 20, 3)
    centre = sources.decode(save(Image.fromarray(picture(5, (40, 80))[:, 20:60]), "PNG"), (20, 20))
    difference = centre.astype(int) - sources.decode(image, (20, 20))
    assert np.abs(difference[:, 1:-1]).max() <= 1  # the filter sees beyond the cut


def test_load_arrays_sizes(folder):
    images, labels, _ = datasets.load_arrays(folder, verbose=False)
    assert images.shape == (12, 24, 32, 3)
    assert np.array_equal(images[0], picture(0))
    Image.fromarray(picture(0, (9, 9))).save(folder / "dog" / "small.png")
    with pytest.raises(ValueError, match="differ in size.*Pass image_size"):
        datasets.load_arrays(folder, verbose=False)
    with pytest.raises(ValueError, match="bytes in memory"):
        datasets.load_arrays(folder, 16, verbose=False, max_bytes=1000)


# --- archives


def write_tar(path, members):
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz", "set.zip"])
def test_archives(tmp_path, name):
    png = {i: save(Image.fromarray(picture(i)), "PNG") for i in range(4)}
    members = {
        "set/README.txt": b"text",
        "set/train/a/0.png": png[0],
        "set/train/b/1.png": png[1],
        "set/test/a/2.png": png[2],
        "set/test/b/3.png": png[3],
    }
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    else:
        write_tar(tmp_path / name, members | {"set/train/a/link.png": "/etc/passwd"})
    images, labels, names = datasets.load_arrays(tmp_path / name, subset="train", verbose=False)
    assert names == ("a", "b") and labels.tolist() == [0, 1]
    assert np.array_equal(images, [picture(0), picture(1)])
    assert len(datasets.load_arrays(tmp_path / name, verbose=False).images) == 4
    dataset = datasets.image_folder(tmp_path / name, 16, subset="test", batch_size=2)
    assert dataset.file_paths == ["a/2.png", "b/3.png"]
    assert collect(dataset)[0].shape == (2, 16, 16, 3)
    with pytest.raises(FileNotFoundError, match="no folder 'valid'"):
        datasets.load_arrays(tmp_path / name, subset="valid")
    with pytest.raises(ValueError, match="more than 50 bytes"):
        datasets.load_arrays(tmp_path / name, max_bytes=50)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\e.png"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_hostile_archive_is_refused(tmp_path, name, kind):
    png = save(Image.fromarray(picture(0)), "PNG")
    path = tmp_path / f"evil.{kind}"
    if kind == "tar":
        write_tar(path, {"ok.png": png, name: png})
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ok.png", png)
            archive.writestr(name, png)
    before = sorted(os.listdir(tmp_path.parent))
    with pytest.raises(ValueError, match="points outside it"):
        datasets.load_arrays(path)
    assert sorted(os.listdir(tmp_path.parent)) == before


def test_damaged_archives(tmp_path):
    write_tar(tmp_path / "a.tar.gz", {"a.png": os.urandom(5000)})
    whole = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[:2000])
    (tmp_path / "b.zip").write_bytes(b"PK no zip")
    for name in ("a.tar.gz", "b.zip"):
        with pytest.raises(ValueError, match="archive cannot be read"):
            datasets.load_arrays(tmp_path / name)


# --- what is installed


def test_image_folder_takes_what_is_installed(folder, monkeypatch):
    assert hasattr(datasets.image_folder(folder, 16), "element_spec")  # tf.data
    monkeypatch.setattr("keras_ssl.datasets.folder.find_spec", lambda name: name == "grain")
    dataset = datasets.image_folder(folder, 16, batch_size=4)
    assert type(dataset).__name__ == "ImageFolderDataset"
    assert [len(images) for images, labels in dataset] == [4, 4, 4]
    with pytest.raises(ImportError, match="tensorflow is not installed"):
        datasets.image_folder(folder, backend="tf.data")


def test_image_folder_needs_a_pipeline(folder, monkeypatch):
    monkeypatch.setattr("keras_ssl.datasets.folder.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs TensorFlow or grain"):
        datasets.image_folder(folder)
    with pytest.raises(ImportError, match="grain is not installed"):
        datasets.image_folder(folder, backend="grain")
    assert len(datasets.load_arrays(folder, 16, verbose=False).images) == 12


def test_what_is_no_regular_file_is_not_waited_for(folder):
    """Pipes and dangling links, with and without a look at every file beforehand."""
    os.mkfifo(folder / "cat" / "0a.png")
    os.symlink("nowhere.png", folder / "cat" / "0b.png")
    reasons = {"cat/0a.png": "not a regular file", "cat/0b.png": "the link points to nothing"}
    for backend in BACKENDS:
        for check in (True, False):
            with pytest.warns(datasets.BrokenImageWarning, match="cat/0a.png"):
                dataset = datasets.image_folder(folder, 16, check=check, backend=backend)
                images, _ = collect(dataset)
            assert len(images) == (12 if check else 14) and dataset.broken_files == reasons
    with pytest.warns(datasets.BrokenImageWarning, match="2 of 14"):
        assert len(datasets.load_arrays(folder, 16, verbose=False).images) == 12
    assert datasets.find_broken_images(folder, verbose=False) == reasons
    assert default_image_size(folder) == 16


def test_image_size_of_a_folder_with_huge_and_broken_headers(folder):
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    (folder / "cat" / "cut.gif").write_bytes(b"GIF89a")
    assert default_image_size(folder) == 16
    with pytest.warns(datasets.BrokenImageWarning, match="bomb"):
        data = load_data(folder, 8)
    assert len(data.train) + len(data.test) == 12


# --- tensorflow_datasets


@pytest.fixture
def tfds_folder(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for label, kind in enumerate(["cat", "dog"]):
            (tmp_path / "tf" / split / kind).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(picture(10 * label + i))
                image.save(tmp_path / "tf" / split / kind / f"{i}.{'jpg' if i else 'png'}")
    return tmp_path / "tf"


def test_from_tfds(tfds_folder):
    import tensorflow_datasets as tfds

    builder = tfds.ImageFolder(str(tfds_folder))
    train = datasets.from_tfds(builder, "train", 16, batch_size=4)
    assert train.class_names == ("cat", "dog") and len(train) == 2
    images, labels = collect(train)
    assert images.shape == (6, 16, 16, 3) and images.dtype == np.uint8
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    # The same files through image_folder differ by rounding (JPEG decoders differ, too).
    ours, _, _ = datasets.load_arrays(tfds_folder, 16, subset="train", verbose=False)
    distance = np.abs(images[:, None].astype(int) - ours[None]).mean((2, 3, 4)).min(1)
    assert distance.max() < 2.0
    model = toy_model(True)
    assert np.isfinite(model.fit(train, verbose=0).history["loss"]).all()
    (batch,) = list(datasets.from_tfds(builder, "test", (8, 12), label_key=None))
    assert np.asarray(batch).shape == (2, 8, 12, 3)
    shuffled = datasets.from_tfds(builder, "train", 16, shuffle=True, seed=1, crop=False)
    assert collect(shuffled)[0].shape == (6, 16, 16, 3)


def test_from_tfds_refuses(tfds_folder, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.ImageFolder(str(tfds_folder))
    with pytest.raises(ValueError, match="no feature 'picture'.*image"):
        datasets.from_tfds(builder, image_key="picture")
    with pytest.raises(ValueError, match="is no image but ClassLabel"):
        datasets.from_tfds(builder, image_key="label")
    with pytest.raises(ValueError, match="no split 'valid'.*test"):
        datasets.from_tfds(builder, "valid")
    with pytest.raises(ValueError, match="no prepared data set.*image_folder"):
        datasets.from_tfds(str(tfds_folder))
    with pytest.raises(ValueError, match="knows no data set of this name"):
        datasets.from_tfds("no_such_data_set", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="is not prepared in.*download=True"):
        datasets.from_tfds("cifar10", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="must be a name, a prepared folder or a builder"):
        datasets.from_tfds(3)
