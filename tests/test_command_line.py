"""The command keras-ssl as a user meets it: every command, mistakes, resuming after a kill."""

import html.parser
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import toy
import yaml
from PIL import Image
from typer.testing import CliRunner

import keras_ssl as keras_ssl_package
from keras_ssl import runs
from keras_ssl.callbacks import Checkpoint, LogFile
from keras_ssl_cli.main import app

ROOT = pathlib.Path(__file__).parent.parent
# A masked autoencoder that compiles fast.
TINY = {
    "method": "mae",
    "image_size": 16,
    "batch_size": 8,
    "options": {"decoder_hidden_dim": 8, "decoder_num_layers": 1, "decoder_num_heads": 2},
    "backbone_options": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2},
}
QUIET = {"monitor": False, "pictures_every": 0, "report": False}


def keras_ssl(*arguments, code=0):
    """What the command prints, on both streams."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos in class folders, photos without, and the run of a masked autoencoder."""
    place = tmp_path_factory.mktemp("place")
    pictures = toy.images(60, size=24)
    for i, picture in enumerate(pictures):
        folder = place / "photos" / ("cat", "dog", "<owl>")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
        (place / "loose").mkdir(exist_ok=True)
        Image.fromarray(picture).save(place / "loose" / f"{i:02d}.png")
    (place / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (place / "quiet.yaml").write_text(yaml.safe_dump({**TINY, **QUIET, "epochs": 4}))
    keras_ssl(
        "pretrain",
        *("--config", place / "tiny.yaml", "--data", place / "photos", "-o", place / "run"),
        *("--epochs", 2, "--set", "mask_ratio=0.5", "--set", "holdout=0.3", "--tensorboard"),
        *("--linear-every", 2, "--pictures-every", 1),
    )
    return place


# ---- pretrain


def test_pretrain_leaves_everything(place):
    run = place / "run"
    assert {p.name for p in run.iterdir()} == {
        "baselines.json",
        "checkpoint-00001.keras",
        "checkpoint-00002.keras",
        "config.yaml",
        "data.json",
        "log.csv",
        "pictures",
        "preset",
        "report.html",
        "result.json",
        "seconds.json",
        "tensorboard",
    }
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["options"] == {**TINY["options"], "mask_ratio": 0.5}
    assert config["patch_size"] == 4 and config["backend"] == keras.backend.backend()
    rows = LogFile.read(run / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "knn_top1", "linear_top1", "effective_rank", "images_per_second"} <= set(
        rows[0]
    )
    result = json.loads((run / "result.json").read_text())
    assert [e["protocol"]["protocol"] for e in result["evaluations"]] == ["knn", "linear_probe"]
    assert set(result["baselines"]) == {"raw pixels", "untrained"}
    assert sorted(p.name for p in (run / "pictures").iterdir()) == [
        "reconstruction_0001.png",
        "reconstruction_0002.png",
        "views_0001.png",
        "views_0002.png",
    ]
    model = runs.load_model(run)
    assert model.mask_ratio == 0.5
    assert model.predict(toy.images(2), verbose=0).shape == (2, 16)


CHILD = """
import os, signal, sys
from keras_ssl.callbacks import Progress
from keras_ssl_cli.main import app
steps = 0
def die(self, batch, logs=None):
    global steps
    steps += 1
    if steps == 19:  # seven steps an epoch: the fifth step of the third
        os.kill(os.getpid(), signal.SIGKILL)
Progress.on_train_batch_end = die
app(sys.argv[1:])
"""


def test_a_killed_run_ends_as_if_it_had_not_been(place, tmp_path):
    """SIGKILL within an epoch, --resume: weights, optimizer, queue of random numbers, log."""
    options = ("--config", place / "quiet.yaml", "--data", place / "loose")
    keras_ssl("pretrain", *options, "-o", tmp_path / "whole")
    killed = tmp_path / "killed"
    arguments = ["pretrain", *map(str, options), "-o", str(killed)]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-3000:]
    assert Checkpoint.latest(killed)[1] == 2 and not (killed / "preset").exists()
    until_kill = json.loads((killed / "seconds.json").read_text())
    said = keras_ssl("pretrain", "-o", killed, "--resume")
    seconds = json.loads((killed / "result.json").read_text())["seconds"]
    assert 0 < until_kill < seconds  # of both sessions
    assert "Going on after epoch 2 of 4." in said
    models = [
        keras.saving.load_model(tmp_path / name / "checkpoint-00004.keras")
        for name in ("whole", "killed")
    ]
    for one, other in zip(*[m.weights + m.optimizer.variables for m in models], strict=True):
        np.testing.assert_array_equal(toy.to_numpy(one), toy.to_numpy(other), one.path)
    logs = [LogFile.read(tmp_path / name / "log.csv") for name in ("whole", "killed")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    # Finished: resuming again trains nothing and changes nothing.
    before = (killed / "log.csv").read_bytes()
    keras_ssl("pretrain", "-o", killed, "--resume")
    assert (killed / "log.csv").read_bytes() == before
    assert json.loads((killed / "result.json").read_text())["seconds"] == seconds


def test_pictures_on_the_disk_train_as_those_in_memory(place, tmp_path):
    arguments = ("--config", place / "quiet.yaml", "--data", place / "loose", "--epochs", 1)
    keras_ssl("pretrain", *arguments, "-o", tmp_path / "memory")
    keras_ssl("pretrain", *arguments, "-o", tmp_path / "disk", "--set", "memory_gb=0.00001")
    losses = [LogFile.read(tmp_path / n / "log.csv")[0]["loss"] for n in ("memory", "disk")]
    assert losses[0] == losses[1]


def test_image_size_is_that_of_the_pictures(place, tmp_path):
    for side, expected in ((24, 16), (40, 32), (300, 224)):
        folder = tmp_path / str(side)
        for i in range(3):
            (folder / "things").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side + i, 2 * side)).save(folder / "things" / f"{i}.png")
        (folder / "broken.png").write_bytes(b"no picture")
        assert runs.default_image_size(folder) == expected
    assert runs.default_image_size("emoji") == 32 and runs.default_image_size("tfds:mnist") == 224
    assert runs.load_data(place / "loose").train.shape == (60, 16, 16, 3)


# ---- the report


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.elements, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "action", "data", "poster")]

    def handle_data(self, data):
        self.text.append(data)


def check_report(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.links and all(link.startswith("data:") for link in page.links)
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text
    return page


def test_report_is_whole_and_needs_no_network(place):
    page = check_report(place / "run" / "report.html")
    assert page.elements.count("img") == 3  # neighbours, views, reconstruction
    assert page.elements.count("polyline") >= 6
    assert page.elements.count("circle") > 18  # the map's, and those of the curves
    words = " ".join(page.text)
    for expected in ("MAE on photos", "k-NN, raw pixels", "knn (version 1)", "mask_ratio", "<owl>"):
        assert expected in words, expected
    assert "<owl>" not in (place / "run" / "report.html").read_text()  # names are escaped


def test_report_in_a_browser(place, tmp_path):
    """Where Chromium is installed: nothing in the console, and the hover shows a picture."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    text = (place / "run" / "report.html").read_text(encoding="utf-8")
    hover = """<script>
      const point = document.querySelector("#map circle");
      point.dispatchEvent(new MouseEvent("mousemove", {bubbles: true}));
      document.title = document.getElementById("look").style.display + " "
        + document.getElementById("look").lastElementChild.textContent + " "
        + document.querySelector("#look div").style.backgroundImage.slice(0, 16);
    </script></body>"""
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", hover), encoding="utf-8")
    if browser is None:
        return
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    result = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "CONSOLE" not in result.stderr
    title = result.stdout.split("<title>")[1].split("</title>")[0]
    assert title.startswith("block ") and title.endswith('url("data:image/'), title
    assert title.split()[1] in ("cat", "dog", "&lt;owl&gt;")


def test_report_again_with_another_map(place):
    said = keras_ssl("report", place / "run", "--map", "tsne")
    assert str(place / "run" / "report.html") in said
    assert "t-SNE" in " ".join(check_report(place / "run" / "report.html").text)


# ---- the other commands


def test_evaluate(place, tmp_path):
    arguments = ("--data", place / "photos", "--k", 3, "--linear-epochs", 2, "--pixels")
    said = keras_ssl("evaluate", place / "run", *arguments, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {str(place / "run"), "raw pixels"}
    knn, linear = figures[str(place / "run")]
    assert knn["protocol"]["k"] == 3 and linear["protocol"]["epochs"] == 2
    assert f"{100 * knn['metrics']['top1']:.2f} %" in said and "raw pixels" in said
    # the same in Python
    model = runs.load_model(place / "run")
    result = runs.evaluate(model, place / "photos", ["knn"], k=3)[0]
    assert result.metrics == knn["metrics"]
    few = runs.evaluate(model, place / "photos", ["knn"], k=2, label_fraction=0.1)[0]
    assert few.data["train"] == 6


def test_evaluate_retrieval_and_names(place):
    said = keras_ssl("evaluate", place / "run", "--data", place / "photos", "-p", "retrieval")
    assert "image_R@1" in said and "pictures of one class" in said

    class Clip:
        """An image-text model that knows everything: one-hot by the red of the corner."""

        logit_scale = keras.Variable(0.0)

        def encode_image(self, images, batch_size=32):
            return np.eye(4)[images[:, 0, 0, 0]]

        def encode_text(self, texts, batch_size=32):
            return np.eye(4)[[int(text.split()[-1].strip(".")) for text in texts]]

    labels = np.array([0, 1, 2, 3, 1, 2])
    images = np.zeros((6, 4, 4, 3), "uint8") + labels[:, None, None, None].astype("uint8")
    data = runs.RunData(
        "toy", images, labels, images, labels, tuple("0123"), None, labels.astype(str)
    )
    zero_shot, retrieval = runs.evaluate(Clip(), data, ["zero-shot", "retrieval"])
    assert zero_shot.top1 == zero_shot.top5 == 1.0
    assert retrieval.metrics["text_R@1"] == retrieval.metrics["image_R@1"] == 1.0
    assert retrieval.details["text_median_rank"] == 1
    assert "text_R@5" in str(retrieval)


def test_evaluate_attention_on_the_shipped_pictures(place):
    said = keras_ssl(
        "evaluate", place / "run", "--data", "emoji", "-p", "segmentation", "--limit", 50
    )
    assert "jaccard_best_head" in said


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_embed_and_search(place, tmp_path, suffix):
    index = tmp_path / f"photos.{suffix}"
    said = keras_ssl("embed", place / "run", place / "photos", index, "--batch-size", 32)
    assert "60 vectors of 16 numbers" in said
    found = runs.Embeddings.load(index)
    model = runs.load_model(place / "run")
    images, _, _ = keras_ssl_package.datasets.load_arrays(place / "photos", 16, verbose=False)
    np.testing.assert_allclose(found.vectors, model.predict(images, verbose=0), atol=1e-5)
    query = place / "photos" / "dog" / "07.png"
    said = keras_ssl("search", index, "--picture", query, "-n", 3, "--grid", tmp_path / "grid.png")
    best = next(line for line in said.splitlines() if "1.000" in line)
    assert str(query) in best  # itself
    assert Image.open(tmp_path / "grid.png").size == (4 * 130 + 2, 132)


def test_embeddings_leave_out_what_cannot_be_read(place, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(place / "photos" / "cat", folder)
    names = sorted(os.listdir(folder))
    whole = (folder / names[2]).read_bytes()
    (folder / names[2]).write_bytes(whole[:60] + b"\xff" * 60 + whole[120:])  # broken inside
    (folder / "zz.jpg").write_bytes(b"no picture")
    model = runs.load_model(place / "run")
    with pytest.warns(UserWarning):
        found = runs.embed_folder(model, folder)
    assert found.names == [name for i, name in enumerate(names) if i != 2]
    assert found.vectors.shape == (19, 16)


def test_finetune(place, tmp_path):
    said = keras_ssl(
        *("finetune", place / "run", "--data", place / "photos", "-o", tmp_path / "classifier"),
        *("--epochs", 2, "--batch-size", 8, "--label-fraction", 0.5),
    )
    assert "27 labelled pictures are used" in said
    figures = json.loads((tmp_path / "classifier" / "result.json").read_text())
    assert figures["class_names"] == ["<owl>", "cat", "dog"] and 0 <= figures["top1"] <= 1
    again = keras_ssl_package.models.ImageClassifier.from_preset(
        str(tmp_path / "classifier" / "preset")
    )
    assert again.predict(toy.images(2, size=16), verbose=0).shape == (2, 3)


def test_convert_there_and_back(place, tmp_path):
    keras_ssl("convert", place / "run", tmp_path / "hf", "--to", "transformers")
    assert (tmp_path / "hf" / "model.safetensors").exists()
    said = keras_ssl("convert", tmp_path / "hf", tmp_path / "preset")
    assert "loaded" in said
    images = toy.images(3, size=16)
    ours, theirs = (runs.load_model(p) for p in (place / "run", tmp_path / "preset"))
    np.testing.assert_allclose(
        ours.predict(images, verbose=0), theirs.predict(images, verbose=0), atol=1e-4
    )


def test_convert_a_file_of_weights(place, tmp_path):
    from keras_ssl.converters import to_official

    model = runs.load_model(place / "run")
    model.pooling = "token"  # as a file of weights alone is taken
    np.savez(tmp_path / "weights.npz", **to_official(model.backbone, "timm_vit"))
    keras_ssl(
        *("convert", tmp_path / "weights.npz", tmp_path / "preset", "--layout", "timm_vit"),
        *("--backbone", "vit_nano", "--image-size", 16, "--set", "backbone.hidden_dim=16"),
        *("--set", "backbone.num_layers=1", "--set", "backbone.num_heads=2"),
    )
    images = toy.images(3, size=16)
    loaded = runs.load_model(tmp_path / "preset")
    assert loaded.preprocessor.image_converter.crop_fraction == 0.875  # as the source evaluates
    model.preprocessor = loaded.preprocessor
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5
    )


def test_convert_finds_what_from_preset_finds(tmp_path, monkeypatch):
    """Settings that no shape tells: MoCo v3's heads, DINO's positions; and the preprocessing."""
    from keras_ssl.backbones import ViTBackbone
    from keras_ssl.converters import load_official, to_official
    from keras_ssl.models import MoCoV3

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    sizes = dict(image_shape=(16, 16, 3), patch_size=8, hidden_dim=384, num_layers=1, mlp_dim=8)
    backbone = ViTBackbone(**sizes, num_heads=12, position_embedding="sincos_moco_v3")
    options = dict(projection_dim=4, projection_hidden_dim=4, augmenter=None)
    state = to_official(MoCoV3(backbone, **options), "moco_v3")
    np.savez(tmp_path / "moco.npz", **state)
    keras_ssl("convert", tmp_path / "moco.npz", tmp_path / "moco")
    model = runs.load_model(tmp_path / "moco")
    assert isinstance(model, MoCoV3) and model.backbone.num_heads == 12
    assert model.preprocessor.image_converter.interpolation == "bilinear"
    state = to_official(ViTBackbone(**{**sizes, "hidden_dim": 16}, num_heads=2), "dino")
    np.savez(tmp_path / "dino.npz", **state)
    said = keras_ssl(
        "convert", tmp_path / "dino.npz", tmp_path / "dino", "--layout", "dino", code=1
    )
    assert "pass num_heads" in said
    keras_ssl(
        *("convert", tmp_path / "dino.npz", tmp_path / "dino", "--layout", "dino"),
        *("--set", "backbone.num_heads=2"),
    )
    model = runs.load_model(tmp_path / "dino")
    assert model.backbone.interpolation_offset == 0.1 and model.backbone.num_heads == 2
    images = np.random.default_rng(0).random((2, 24, 24, 3)).astype("float32")
    expected = ViTBackbone(**{**sizes, "hidden_dim": 16}, num_heads=2, interpolation_offset=0.1)
    load_official(expected, state, "dino")
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(m(images)) for m in (model.backbone, expected))
    )


def test_presets_methods_and_doctor():
    listed = json.loads(keras_ssl("presets", "--json"))
    assert listed.keys() == keras_ssl_package.list_presets().keys()
    assert "licence" in keras_ssl("presets", "--released")
    said = keras_ssl("methods")
    for name in ("simclr", "moco_v3", "barlow_twins", "mae", "small_resnet", "vit_nano"):
        assert name in said
    said = keras_ssl("doctor")
    assert f"backend {keras.backend.backend()}" in said and "All is well." in said


def test_help_has_examples():
    for command in ("pretrain", "evaluate", "embed", "search", "finetune", "convert"):
        said = keras_ssl(command, "--help")
        assert f"keras-ssl {command}" in said, said


def test_commands_of_the_documentation_parse():
    import re
    import shlex

    from typer.main import get_command

    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    text = "".join(
        block
        for page in pages
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    )
    lines = [line for line in text.splitlines() if line.startswith("keras-ssl ")]
    assert len(lines) > 10
    for line in lines:
        name, *arguments = shlex.split(line, comments=True)[1:]
        get_command(app).commands[name].make_context(name, arguments)  # parses, runs nothing


def test_help_does_not_wait_for_keras():
    code = "import sys, keras_ssl_cli.main; assert not {'keras', 'keras_ssl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- mistakes: a message, exit code 1 (2 for the shell's own), no traceback


MISTAKES = [
    (["pretrain", "simclr", "--data", "nowhere"], 1, "There is no such folder or archive"),
    (["pretrain", "sinclr", "--data", "emoji"], 1, "`method` must be one of ['barlow_twins'"),
    (
        ["pretrain", "--data", "LOOSE", "--backbone", "vit_smal"],
        1,
        "`backbone` must be one of ['small_resnet'",
    ),
    (
        ["pretrain", "--data", "LOOSE", "--set", "temprature=1"],
        1,
        "SimCLR has no option 'temprature'. Did you mean 'temperature'?",
    ),
    (["pretrain", "--set", "temperature"], 1, "--set wants name=value"),
    (["pretrain", "--precision", "float61"], 1, "`precision` must be one of"),
    (["pretrain", "--backend", "theano"], 1, "--backend must be one of jax, tensorflow, torch"),
    (["pretrain", "--epochs", "many"], 2, "Invalid value for '--epochs'"),
    (["pretrain", "--epochs", "0"], 1, "`epochs` must be > 0"),
    (
        ["pretrain", "--data", "LOOSE", "--config", "tiny.yaml", "--batch-size", "61"],
        1,
        "A batch is larger than",
    ),
    (
        ["pretrain", "--data", "LOOSE", "--image-size", "30", "--patch-size", "8"],
        1,
        "multiple of the patch size",
    ),
    (["pretrain", "--config", "nothing.yaml"], 1, "There is no such file"),
    (["pretrain", "--config", "typo.yaml"], 1, "Did you mean 'epochs'?"),
    (["pretrain", "--config", "broken.yaml"], 1, "This is not YAML"),
    (["evaluate", "no_such_preset", "--data", "emoji"], 1, "Unknown preset"),
    (["evaluate", "RUN", "--data", "LOOSE"], 1, "need labels"),
    (["evaluate", "RUN", "--data", "PHOTOS", "-p", "zero-shot"], 1, "needs an image-text model"),
    (["evaluate", "RUN", "--data", "PHOTOS", "-p", "segmentation"], 1, "needs masks"),
    (["evaluate", "RUN", "--data", "PHOTOS", "-p", "knm"], 1, "`protocols` must be of"),
    (["evaluate", "RUN", "--data", "PHOTOS", "--k", "1000"], 1, "`k` must not be greater"),
    (["embed", "RUN", "LOOSE", "out.csv"], 1, "must end in .npz or .parquet"),
    (["embed", "RUN", "typo.yaml", "out.npz"], 1, "path must be a folder or an archive"),
    (["search", "nothing.npz", "--picture", "a.png"], 1, "There is no such file"),
    (["search", "nothing.npz"], 1, "Give either --picture or --text"),
    (["search", "INDEX", "--text", "a cat"], 1, "Only image-text models"),
    (["search", "INDEX", "--picture", "typo.yaml"], 1, "The picture cannot be read"),
    (["search", "typo.npz", "--picture", "a.png"], 1, "This is no file of embeddings"),
    (["finetune", "RUN", "--data", "LOOSE", "-o", "out"], 1, "Fine-tuning needs labels"),
    (["convert", "nothing.pth", "out"], 1, "There is no such file or folder"),
    (["convert", "typo.npz", "out"], 1, "The .npz file cannot be read"),
    (["report", "."], 1, "no folder of a finished run"),
    (["nonsense"], 2, "No such command"),
]


@pytest.mark.parametrize("arguments, code, message", MISTAKES, ids=lambda v: str(v)[:60])
def test_mistakes(place, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("epoch: 3\n")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "typo.npz").write_bytes(b"no archive")
    runs.Embeddings(np.eye(16, dtype="float32"), list("abcdefghijklmnop"), "", "").save("index.npz")
    known = {"RUN": place / "run", "LOOSE": place / "loose", "PHOTOS": place / "photos"}
    arguments = [str(known.get(a, a)).replace("INDEX", "index.npz") for a in arguments]
    if arguments[0] == "search":
        arguments += ["--preset", str(place / "run")]
    said = keras_ssl(*arguments, code=code)
    assert message in " ".join(said.split()), said
    assert "Traceback" not in said


def test_a_run_is_not_overwritten_by_accident_nor_resumed_otherwise(place):
    again = ("pretrain", "--config", place / "run" / "config.yaml", "-o", place / "run")
    assert "holds a run" in keras_ssl(*again, code=1)
    said = keras_ssl(*again, "--resume", "--epochs", 9, code=1)
    assert "epochs was 2, is 9" in said


def test_a_run_is_not_resumed_over_other_pictures(place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    run = tmp_path / "run"
    keras_ssl(
        *("pretrain", "--config", place / "quiet.yaml", "--epochs", 1),
        *("--data", tmp_path / "photos", "-o", run),
    )
    known = json.loads((run / "data.json").read_text())
    assert known["files"] == 60
    keras_ssl("pretrain", "-o", run, "--resume")
    more = tmp_path / "photos" / "cat" / "more.png"
    Image.fromarray(toy.images(1)[0]).save(more)
    said = " ".join(keras_ssl("pretrain", "-o", run, "--resume", code=1).split())
    assert "60 pictures then, 61 now" in said and f"remove {run / 'data.json'}" in said
    more.rename(tmp_path / "photos" / "cat" / "00.png")  # another picture of the same name
    said = " ".join(keras_ssl("pretrain", "-o", run, "--resume", code=1).split())
    assert "60 pictures then and now, but not of the same names and sizes" in said
    (run / "data.json").unlink()
    keras_ssl("pretrain", "-o", run, "--resume")
    assert json.loads((run / "data.json").read_text())["sha256"] != known["sha256"]


def test_names_that_are_no_utf8(tmp_path):
    """A run, its report, embeddings and a search over folders and files of such names."""
    photos = os.path.join(os.fsencode(tmp_path), b"photos \xfd")
    for i, picture in enumerate(toy.images(16)):
        folder = os.path.join(photos, (b"cat", b"\xff\xfe dog")[i % 2])
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, b"\xfc%d.png" % i), "wb") as file:
            Image.fromarray(picture).save(file, "PNG")
    data, run = os.fsdecode(photos), tmp_path / "run"
    settings = {**TINY, "monitor": False, "pictures_every": 0, "epochs": 1, "output": str(run)}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    options = ("--config", tmp_path / "run.yaml", "--data", data, "--tensorboard")
    keras_ssl("pretrain", *options)
    keras_ssl("pretrain", "-o", run, "--resume")  # the configuration reads back
    assert "\\xff\\xfe dog" in (run / "report.html").read_text(encoding="utf-8")
    assert "\\xff\\xfe dog" in (next(run.rglob("labels.tsv"))).read_text(encoding="utf-8")
    assert runs.load_data(data, 16).class_names == ("cat", "\\xff\\xfe dog")
    for suffix in ("npz", "parquet"):
        keras_ssl("embed", run, data, tmp_path / f"index.{suffix}")
    picture = os.fsdecode(os.path.join(photos, b"cat", b"\xfc0.png"))
    said = keras_ssl("search", tmp_path / "index.npz", "--picture", picture, "--preset", run)
    assert "0.png" in said


def test_debug_shows_where_it_happened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["--debug", "pretrain", "--data", "nowhere"])
    assert isinstance(result.exception, FileNotFoundError)
    keras_ssl("pretrain", "--data", "nowhere", code=1)  # the next one is friendly again
