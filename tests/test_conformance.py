"""The conformance runner: it passes on the official vectors, and it can fail."""

import json
import pathlib

import conformance_handlers
import dino_vectors
import hf_vectors
import keras
import moco_v3_vectors
import numpy as np
import pytest
import reference_vectors
from conformance_handlers import framework, initial, scope

VECTORS = pathlib.Path(__file__).parent / "vectors"
OFFICIAL = (
    "mae_pretrain",
    "mae_pretrain_normpix",
    "mae_vit_cls",
    "mae_vit_gap",
    "mae_utils",
    "simclr_ntxent",
    "simclr_lars",
    "simclr_augment",
    "moco_v2_shufflebn_world2",
    "mocov3_resnet",
    "mocov3_utils",
    "byol_functions",
    "barlow_loss",
    "barlow_vicreg_lars",
    "vicreg_loss",
    "lightly_pairwise",
    "lightly_memory_bank",
    "clip_vit",
    "clip_tokenizer",
    "openclip_losses",
    "openclip_losses_world2",
    "lightly_prototypes",
    "dinov2_losses",
    "dinov2_utils",
    "dinov2_swiglu_reg",
    "dinov2_arch_sinkhorn_sephead",
    "dino_backbone",
    "dino_train_adamw",
    "dino_utils",
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Many tiny models: JAX compiles them three times faster when it optimises less, and threads of
    PyTorch would only wait for one another. The command line leaves JAX as users have it."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    elif backend == "torch":
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
    else:
        yield


def run(folder, only=None, verbose=False):
    """Exit status and output of a run."""
    lines = []
    status = conformance_handlers.run(folder, only=only, verbose=verbose, echo=lines.append)
    return status, "\n".join(lines)


def run_case(name, change=None):
    """One official file through its handler, after `change(arrays, meta)`."""
    arrays, meta = framework.load(VECTORS / f"{name}.npz")
    if change is not None:
        change(arrays, meta)
    return framework.run_case(name, arrays, meta)


def first_run_of_ntxent(arrays, meta):
    """Less to compile: one of the file's runs, which is enough to see something fail."""
    meta["config"]["runs"] = meta["config"]["runs"][:1]
    for key in [k for k in arrays if "/" in k and k.split("/")[1] != "0"]:
        del arrays[key]


def run_ntxent(change):
    def changed(arrays, meta):
        first_run_of_ntxent(arrays, meta)
        change(arrays, meta)

    return run_case("simclr_ntxent", changed)


def missed(case):
    return [row.key for row in case.rows if not row.ok]


# === It passes ===============================================================================


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_vectors(name):
    status, output = run(VECTORS, only=f"{name}.npz")
    assert status == 0, output
    assert "1 of 1 files without failure" in output
    assert " 0 uncovered" in output


MAE_CONFIG = dict(
    img_size=12,
    patch_size=4,
    embed_dim=12,
    depth=2,
    num_heads=3,
    decoder_embed_dim=8,
    decoder_depth=2,
    decoder_num_heads=2,
    mlp_ratio=2.5,
    ln_eps=1e-5,
    norm_pix_loss=True,
    mask_ratio=0.6,
    batch=3,
    steps=4,
    lr=3e-3,
    weight_decay=0.3,
    betas=[0.8, 0.99],
)
VIT_CONFIG = dict(
    global_pool=False,
    img_size=20,
    patch_size=4,
    embed_dim=12,
    depth=3,
    num_heads=3,
    mlp_ratio=2.0,
    ln_eps=1e-5,
    num_classes=7,
    batch=3,
    interp_img_sizes=[32, 12, 20],
    weight_decay=0.1,
    layer_decay=0.6,
)
UTILS_CONFIG = dict(
    seed=3,
    sincos=[[24, 3], [8, 5]],
    lr_stride=0.3,
    steps=7,
    lr_sched=dict(lr=0.01, min_lr=1e-4, warmup_epochs=2.5, epochs=11),
    lars_shapes=dict(kernel=[3, 4], zero=[2, 2], gain=[5]),
    lars=dict(lr=0.7, weight_decay=0.1, momentum=0.8, trust_coefficient=0.02),
)
NTXENT_RUNS = [
    dict(batch=5, dim=7, temperature=0.2, hidden_norm=True, noise=0.3),
    dict(batch=3, dim=4, temperature=0.9, hidden_norm=False, noise=1.0),
    # Aligned views at a low temperature: the loss is what is left of cancelling logits.
    dict(batch=4, dim=16, temperature=0.05, hidden_norm=True, noise=0.02),
]
_LISTS = dict(exclude_from_weight_decay=["bias", "norm"])
LARS_CONFIG = dict(
    steps=4,
    shapes={"a/kernel": [4, 3], "a/bias": [3], "norm/scale": [4], "z/kernel": [2, 3]},
    zero="z/kernel",
    zero_grad="a/kernel",
    variants={
        "plain": dict(learning_rate=0.4),
        "adapted": dict(
            learning_rate=0.1,
            momentum=0.7,
            weight_decay=0.05,
            eeta=0.02,
            exclude_from_layer_adaptation=["kernel"],
            **_LISTS,
        ),
        "empty list": dict(
            learning_rate=0.2, weight_decay=0.1, exclude_from_layer_adaptation=[], **_LISTS
        ),
        "popular": dict(
            learning_rate=0.3, weight_decay=0.02, classic_momentum=False, use_nesterov=True
        ),
        "nesterov": dict(learning_rate=0.3, momentum=0.5, use_nesterov=True, **_LISTS),
    },
)


def test_files_of_other_sizes_and_options(tmp_path):
    """References written for this test, of sizes, options and names that no official file has."""
    reference_vectors.mae_pretrain(tmp_path / "a.npz", MAE_CONFIG, seed=1)
    reference_vectors.mae_vit(tmp_path / "b.npz", VIT_CONFIG, seed=2)
    mean = {**VIT_CONFIG, "global_pool": True, "img_size": [8, 16], "interp_img_sizes": [[16, 8]]}
    reference_vectors.mae_vit(tmp_path / "c.npz", mean, seed=3)
    reference_vectors.mae_utils(tmp_path / "d.npz", UTILS_CONFIG, seed=4)
    reference_vectors.simclr_ntxent(tmp_path / "e.npz", NTXENT_RUNS, seed=5)
    (tmp_path / "sub").mkdir()
    reference_vectors.simclr_lars(tmp_path / "sub" / "f.npz", LARS_CONFIG, seed=6)
    status, output = run(tmp_path)
    assert status == 0, output
    assert "6 of 6 files without failure" in output
    assert "sub/f.npz" in output


SMALL_MAE_CONFIG = {
    **MAE_CONFIG,
    **dict(img_size=[8, 16], depth=1, decoder_depth=1, mlp_ratio=4, steps=1, batch=2),
    **dict(norm_pix_loss=False, mask_ratio=0.5, lr=1e-3, weight_decay=0.05),
}


def test_dino_with_normalisation_in_the_head_and_lars(tmp_path):
    """Steps in plain PyTorch, with options that no official file has."""
    dino_vectors.training(tmp_path / "steps.npz", dino_vectors.CONFIG, seed=1)
    status, output = run(tmp_path)
    assert status == 0, output


def test_dino_without_clipping(tmp_path):
    config = {**dino_vectors.CONFIG, "clip_grad": 0, "steps": 1, "use_bn": False}
    dino_vectors.training(tmp_path / "steps.npz", config, seed=2)
    status, output = run(tmp_path)
    assert status == 0, output


def test_moco_v3_of_other_epochs_and_every_parameter_tracked(tmp_path):
    resnet = dict(arch="resnet", width=4, img_size=9, optimizer="lars", lr=0.4, moco_m_cos=False)
    moco_v3_vectors.write(tmp_path / "a.npz", moco_v3_vectors.CONFIG, seed=1)
    moco_v3_vectors.write(tmp_path / "b.npz", {**moco_v3_vectors.CONFIG, **resnet}, seed=2)
    status, output = run(tmp_path)
    assert status == 0, output


def test_folders_of_transformers(tmp_path):
    """Settings, sizes and names that no folder of the vectors has."""
    for name in hf_vectors.FOLDERS:
        hf_vectors.write(tmp_path / name, name)
    status, output = run(tmp_path)
    assert status == 0, output
    arrays, meta = framework.load(tmp_path / "dinov2" / "golden.npz")
    arrays["out/masked/last_hidden_state"][0, 3] += 1e-3
    case = framework.run_case("dinov2", arrays, meta, tmp_path / "dinov2")
    assert missed(case) == ["out/masked/last_hidden_state"]


def test_a_picture_that_is_not_square_with_one_channel(tmp_path):
    reference_vectors.mae_pretrain(tmp_path / "a.npz", SMALL_MAE_CONFIG, channels=1, seed=7)
    status, output = run(tmp_path)
    assert status == 0, output


# === It can fail =============================================================================


def test_a_perturbed_parameter_is_seen():
    def change(arrays, meta):
        arrays["param/blocks.0.norm1.weight"][3] += 0.02

    case = run_case("mae_vit_cls", change)
    assert not case.ok
    assert {"out/features", "out/logits"} <= set(missed(case))


@pytest.mark.parametrize(
    "option, value, key",
    [
        ("ln_eps", 1e-5, "out/features"),
        ("layer_decay", 0.8, "check: lr scale and decay of pos_embed"),
    ],
)
def test_another_option_is_seen(option, value, key):
    def change(arrays, meta):
        meta["config"][option] = value

    case = run_case("mae_vit_cls", change)
    assert not case.ok
    assert key in missed(case)


@pytest.mark.parametrize(
    "key, change, expected",
    [
        ("out/0/loss", lambda x: x * (1 + 3e-5), "out/0/loss"),
        ("grad/0/hidden", lambda x: x * (1 + 3e-4), "grad/0/hidden"),
        ("grad/0/hidden", lambda x: x[:-1], "grad/0/hidden"),
        ("out/0/logits_ab", lambda x: x * np.nan, "out/0/logits_ab"),
    ],
)
def test_another_expected_value_is_seen(key, change, expected):
    def perturb(arrays, meta):
        arrays[key] = change(arrays[key])

    case = run_ntxent(perturb)
    assert not case.ok
    assert expected in missed(case)


def test_a_lost_weight_decay_is_seen(tmp_path):
    """It changes a parameter by less than the bound of steps, but not its move from the start."""
    reference_vectors.mae_pretrain(tmp_path / "a.npz", SMALL_MAE_CONFIG, seed=8)
    arrays, meta = framework.load(tmp_path / "a.npz")
    meta["config"]["weight_decay"] = 0.0
    for group in meta["optimizer_groups"]:
        group["weight_decay"] = 0.0
    misses = missed(framework.run_case("a", arrays, meta))
    assert "step1/moved/blocks.0.attn.proj.weight" in misses
    assert all(key.startswith("step1/moved/") for key in misses)


def test_an_unknown_option_is_reported():
    def change(arrays, meta):
        meta["config"]["runs"][0]["margin"] = 0.3

    case = run_ntxent(change)
    assert case.problems == ["unknown option: config.runs[0].margin"]

    def change(arrays, meta):
        meta["config"]["in_chans"] = 4

    (problem,) = run_case("mae_vit_cls", change).problems[:1]
    assert "config.in_chans = 4 is not understood" in problem


def test_an_uncompared_key_and_an_unused_input_are_reported():
    def change(arrays, meta):
        arrays["out/0/entropy"] = np.zeros(2, "float32")
        arrays["in/mask"] = np.zeros(2, "float32")

    case = run_ntxent(change)
    assert sorted(case.problems) == [
        "input never used: in/mask",
        "key not compared: out/0/entropy",
    ]


def test_a_key_that_the_handler_expects_and_the_file_lacks_is_reported():
    def change(arrays, meta):
        del arrays["out/0/loss"]

    assert not run_ntxent(change).ok


def write(path, meta, **arrays):
    np.savez(path, **({} if meta is None else {"meta": np.array(json.dumps(meta))}), **arrays)


def test_unknown_files_fail(tmp_path):
    write(tmp_path / "mae_pretrain.npz", {"method": "jepa", "config": {"kind": "new"}}, a=1.0)
    write(tmp_path / "mae_utils.npz", None, a=1.0)
    (tmp_path / "simclr_lars.npz").write_bytes(b"not an archive")
    status, output = run(tmp_path)
    assert status == 1
    assert "no handler for method 'jepa', kind 'new'" in output
    assert "unreadable file" in output and "it holds no `meta`" in output
    assert "0 of 3 files without failure" in output


def test_an_empty_selection_fails(tmp_path):
    assert run(tmp_path)[0] != 0
    assert run(tmp_path / "absent")[0] != 0
    assert run(VECTORS, only="no such name")[0] != 0


def test_a_folder_with_nothing_in_scope_is_not_a_success(tmp_path, monkeypatch):
    rows = [*scope.OUT_OF_SCOPE, ("lightly/swin", "*", "no Swin among the backbones here")]
    monkeypatch.setattr(framework, "OUT_OF_SCOPE", rows)
    write(tmp_path / "a.npz", {"method": "lightly", "config": {"kind": "swin"}}, loss=1.0)
    status, output = run(tmp_path, verbose=True)
    assert status != 0
    assert "out  loss: no Swin among the backbones here" in output
    assert "Nothing was compared" in output


def test_out_of_scope_keys_are_counted_with_their_reason(tmp_path):
    z = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    config = {"kind": "pairwise", "seed": 0, "batch": 4, "dim": 3, "noise": 1.0}
    kwargs = {"MACLLoss": [{"temperature": 0.3}]}
    write(
        tmp_path / "a.npz",
        {"method": "lightly", "config": {**config, "kwargs": kwargs}},
        **{"in/z0": z[0], "in/z1": z[1], "out/MACLLoss/0/call1": 1.0},
    )
    _, output = run(tmp_path)
    assert "coverage: 3 keys = 0 compared + 2 inputs + 1 out of scope + 0 uncovered" in output
    assert "model-aware contrastive loss: not offered" in output


def test_a_handler_and_the_scope_table_may_not_overlap(monkeypatch):
    rows = [*scope.OUT_OF_SCOPE, ("simclr/ntxent", "out/0/*", "by mistake")]
    monkeypatch.setattr(framework, "OUT_OF_SCOPE", rows)
    case = run_ntxent(lambda arrays, meta: None)
    assert "compared, yet listed as out of scope: out/0/loss" in case.problems


# === How numbers are compared ================================================================


def make_case(**arrays):
    return framework.Case("a", {k: np.asarray(v, "float32") for k, v in arrays.items()}, {})


def test_zero_references_are_compared_with_the_scale_of_their_group():
    case = make_case(**{"grad/a": [3.0, 4.0], "grad/b": [0.0, 0.0], "out/c": [0.0]})
    scale = np.sqrt(25 / 4)
    case.compare("grad/b", np.full(2, 0.9e-4 * framework.TINY * scale))
    case.compare("grad/b", np.full(2, 1.1e-4 * framework.TINY * scale))
    case.compare("out/c", np.array([0.9e-5]))
    case.compare("out/c", np.array([1.1e-5]))
    assert [row.ok for row in case.rows] == [True, False, True, False]
    assert all(row.absolute for row in case.rows)


def test_the_references_own_rounding_excuses_no_more_than_itself():
    case = make_case(loss=1e-3)
    case.meta["fp64_maxabs"] = {"loss": 1e-6}
    case.compare("loss", 1e-3 + 3.5e-6)
    case.compare("loss", 1e-3 + 4.5e-6)
    assert [row.ok for row in case.rows] == [True, False]
    assert "float64 run" in case.rows[0].note


@pytest.mark.parametrize("count", [2, 4, 8, 16, 300])
def test_initial_values_of_few_elements_are_not_refused_by_chance(count):
    """Two draws of one distribution agree, whatever their size; another scale is seen."""
    rng = np.random.default_rng(0)

    def differs(scale):
        values = rng.normal(size=(2, count)) * [[scale], [1.0]]
        theirs = dict(mean=values[1].mean(), std=values[1].std())
        return bool(initial._differences(values[0], theirs))

    assert not any(differs(1.0) for _ in range(300))
    assert count < 300 or all(differs(1.5) for _ in range(10))


def test_a_bound_of_its_own_needs_a_reason():
    case = make_case(loss=1.0)
    with pytest.raises(ValueError, match="needs a reason"):
        case.compare("loss", 1.0, bound=1e-2)


@pytest.mark.parametrize(
    "key, kind",
    [
        ("loss", "output"),
        ("step1/loss", "output"),
        ("step2/loss", "step"),
        ("out/latent", "output"),
        ("grad/blocks.0.norm1.weight", "gradient"),
        ("step1/param/a", "step"),
        ("nesterov/step3/param/dense/kernel", "step"),
        ("nesterov/momentum/dense/kernel", "step"),
    ],
)
def test_kinds_of_keys(key, kind):
    assert framework.kind_of(key) == kind
