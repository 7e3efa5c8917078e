"""Weights in diffusers' layout: to runs and back, bit for bit, and what is wrong with them in one line."""

import json
import pickle
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import mistake, snapshot
from safetensors.numpy import load_file, save_file

import jgen
import sample
import train
from jgen.convert import dit as dit_names
from jgen.convert import reading, scheduler
from jgen.convert import unet as unet_names
from jgen.convert.__main__ import Arguments, command
from jgen.convert.files import read_tensors
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.models.diffusion import ddpm, dit, flow_matching, latent
from jgen.models.vae import autoencoder_kl
from jgen.nn import dit as dit_networks
from jgen.nn import first_stage, unet
from jgen.nn.embeddings import sinusoidal_embedding
from jgen.samplers.diffusion import Sampling

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = tuple(f"digit {i}" for i in range(10))
DIGITS = DataSpec(ImageSpec(8, 8, 1, 256), {"label": ArraySpec((), "int32", 10, NAMES)})
DIT = dit_networks.Config(patch=2, features=8, layers=2, heads=2)
UNET = unet.Config(channels=(8, 16), blocks=1, attention=(8,), head_dim=8, groups=4, dropout=0.0)
DDIM = Sampling(spacing="leading", steps=4)
CHAIN = {"num_timesteps": 4, "first_timestep": 0, "sampling": DDIM}
FIRST_STAGE = first_stage.Config(channels=(4, 8), blocks=1, latent_channels=2, groups=4)
LEARNED = ddpm.Config(network=DIT, bound_variance="learned", **CHAIN | {"sampling": replace(DDIM, clip=False)})
SYSTEMS = {
    "dit": dit.Config(ddpm.Config(network=DIT, schedule="quadratic", prediction="v", **CHAIN)),
    "unet": ddpm.Config(network=UNET, class_conditional=False, label_dropout=0.0, **CHAIN),
    "unet_by_class": ddpm.Config(network=replace(UNET, padding="end", norm_eps=1e-6), **CHAIN),
    "from_one": dit.Config(ddpm.Config(network=DIT, **CHAIN | {"first_timestep": 1})),
    "autoencoder": autoencoder_kl.Config(FIRST_STAGE),
    "latent": latent.Config(LEARNED),
}


def random_params(model, seed=0):
    """Parameters of which no two are equal."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), reading.template(model))


def write(path, config, data, params, extra=None, frozen=None):
    model = reading.Model(config, data, params, extra or {}, {})
    reading.write_run(path, model, Arguments(), None, frozen or {}, path)
    return path


@pytest.fixture(scope="module")
def made(cache, tmp_path_factory):
    """{system: (run, folder)} of runs with random weights, and their folders in diffusers' layout."""
    base = tmp_path_factory.mktemp("converted")
    first = autoencoder_kl.make(SYSTEMS["autoencoder"], DIGITS)
    z = DataSpec(ImageSpec(4, 4, 2, levels=0), DIGITS.fields)
    inner = {
        "dit": dit.make(SYSTEMS["dit"], DIGITS),
        "latent": ddpm.make(LEARNED, z),
        "autoencoder": first,
        "from_one": dit.make(SYSTEMS["from_one"], DIGITS),
        **{name: ddpm.make(SYSTEMS[name], DIGITS) for name in ("unet", "unet_by_class")},
    }
    runs = {}
    for seed, (name, config) in enumerate(SYSTEMS.items()):
        extra = {"latent_scale": np.float32(3.7)} if name == "latent" else {}
        frozen = {"autoencoder": base / "autoencoder"} if name == "latent" else {}
        run = write(base / name, config, DIGITS, random_params(inner[name], seed), extra, frozen)
        assert command([str(run), str(base / f"{name}_folder"), "--to-diffusers"]) == 0
        runs[name] = run, base / f"{name}_folder"
    return runs


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# To diffusers' layout and back.


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "from_one"])
def test_a_round_trip_gives_the_same_run(name, made, tmp_path):
    run, folder = made[name]
    options = ["--null-class"] if name == "unet_by_class" else []
    assert command([str(folder), str(tmp_path / "run"), *options]) == 0
    before, after = jgen.load(run), jgen.load(tmp_path / "run")
    same(before.params, after.params)
    same(before.ctx.extra, after.ctx.extra)
    assert before.config.model == after.config.model and before.model.images == after.model.images
    if name == "latent":
        same(before.ctx.frozen["autoencoder"].params, after.ctx.frozen["autoencoder"].params)
        assert after.classes == NAMES


@pytest.mark.slow
def test_a_folder_comes_out_as_it_went_in(made, tmp_path):
    folder = made["latent"][1]
    assert command([str(folder), str(tmp_path / "run")]) == 0
    assert command([str(tmp_path / "run"), str(tmp_path / "folder"), "--to-diffusers"]) == 0
    assert snapshot(folder) == snapshot(tmp_path / "folder")


def test_a_folder_is_loaded_as_its_run(made):
    """Without one being written: parameters, scale of the latents, and the autoencoder."""
    run, folder = made["latent"]
    before, after = jgen.load(run), jgen.load(folder)
    for one, other in ((before.ctx, after.ctx), (before.ctx.frozen["autoencoder"], after.ctx.frozen["autoencoder"])):
        same(one.extra, other.extra)
    same(before.params, after.params)
    same(before.ctx.frozen["autoencoder"].params, after.ctx.frozen["autoencoder"].params)
    assert after.model is before.model and after.classes == NAMES
    mistake(lambda: jgen.load(folder, dtype="bfloat16"), "dtype is bfloat16", "no text encoder")


def test_a_network_that_counts_steps_from_one_is_written_as_one_that_counts_from_zero(made, tmp_path):
    run, folder = made["from_one"]
    assert command([str(folder), str(tmp_path / "run")]) == 0
    before, after = jgen.load(run), jgen.load(tmp_path / "run")
    assert (before.config.model.objective.first_timestep, after.config.model.objective.first_timestep) == (1, 0)
    x_t, t = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), np.array([0.25, 0.5, 0.75, 1.0])
    labels, gens = {"label": np.arange(4)}, (before, after)
    denoised = [jax.jit(gen.model.functions["denoise"])(gen.params, gen.ctx, x_t, t, labels) for gen in gens]
    np.testing.assert_allclose(*denoised, rtol=0, atol=2e-5 * np.abs(denoised[0]).max())


def test_a_kernel_that_counts_from_zero():
    kernel = np.random.default_rng(0).normal(size=(9, 5))
    t = np.array([1.0, 2.0, 77.0, 1000.0])
    turned = scheduler.counted_from_zero(kernel)
    np.testing.assert_allclose(
        sinusoidal_embedding(t - 1, 9) @ turned, sinusoidal_embedding(t, 9) @ kernel, rtol=0, atol=1e-4
    )


def test_a_class_embedding_without_a_null_class_gains_one_that_is_never_used(made, tmp_path):
    """Ten classes are written of a run without label dropout, and eleven of one with it."""
    run, folder = made["unet_by_class"]
    assert load_file(folder / "unet" / WEIGHTS)["class_embedding.weight"].shape == (11, 32)
    assert command([str(folder), str(tmp_path / "run")]) == 0  # all eleven are classes
    gen = jgen.load(tmp_path / "run")
    assert gen.model.data.num_classes == 11 and gen.config.model.label_dropout == 0.0
    embedding = gen.params["unet"]["classes"]["embedding"]
    assert embedding.shape == (12, 32) and not embedding[-1].any()
    same(embedding[:-1], jgen.load(run).params["unet"]["classes"]["embedding"])
    assert command([str(tmp_path / "run"), str(tmp_path / "folder"), "--to-diffusers"]) == 0
    assert snapshot(folder / "unet") == snapshot(tmp_path / "folder" / "unet")


def test_half_precision_and_the_old_names_of_attention_are_read(made, tmp_path):
    import ml_dtypes

    folder = shutil.copytree(made["autoencoder"][1], tmp_path / "folder")
    tensors = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in tensors.items():
        for now, before in old.items():
            name = name.replace(now, before)
        renamed[name] = array.astype(np.float16)
    assert set(renamed) != set(tensors)
    save_file(renamed, folder / WEIGHTS)
    assert command([str(folder), str(tmp_path / "run")]) == 0
    before, after = jgen.load(made["autoencoder"][0]), jgen.load(tmp_path / "run")
    same(jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), before.params), after.params)

    wanted = {name: array.shape for name, array in tensors.items()}
    bfloat16 = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    write_raw(tmp_path / "b.safetensors", bfloat16, "BF16")
    same(read_tensors(tmp_path / "b.safetensors", wanted), {n: a.astype(np.float32) for n, a in bfloat16.items()})


def write_raw(path, tensors, kind, **changes):
    """A safetensors file, byte by byte; `changes` are made to the header's entry of the first tensor."""
    header, data = {}, b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header[next(iter(tensors))] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# Converted runs are runs.


@pytest.mark.slow
def test_a_converted_pipeline_is_sampled_by_command(made, tmp_path, capsys):
    folder = made["latent"][1]
    assert command([str(folder), str(tmp_path / "run")]) == 0
    out = tmp_path / "images.npz"
    assert sample.command([str(tmp_path / "run"), "--num", "4", "--label", "3", "--out", str(out)]) == 0
    images = np.load(out)
    assert images["images"].shape == (4, 8, 8, 1) and images["labels"].tolist() == [3] * 4
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    origin = environment["converted_from"]
    assert origin["folder"] == str(folder) and len(origin["sha256"]) == 1 and environment["seed"] == 0
    shutil.move(tmp_path / "run", tmp_path / "moved")  # the autoencoder is then found beside it
    assert jgen.load(tmp_path / "moved").classes == NAMES


@pytest.mark.slow
def test_a_converted_run_is_trained_on(cache, made, tmp_path):
    """With the digits' own data: at conversion, or later."""
    source, folder = made["dit"]
    small = ["--train.steps", "2", "--train.batch-size", "4", "--train.samples-per-class", "1"]
    small += ["--train.validate-every", "0"]
    run, data = tmp_path / "run", ["--data.name", "digits", "--data.levels", "256"]
    assert command([str(folder), str(run), *small]) == 0
    mistake(lambda: train.command([str(run)]), "data.name is empty", "--data.name digits")
    mistake(lambda: train.command([str(run), "--data.name", "digits"]), "the data was", "levels=256")
    mistake(lambda: train.command([str(run), *data, "--train.batch-size", "8"]), "train.batch_size was 4, is 8")
    assert train.command([str(run), *data]) == 0
    gen = jgen.load(run)
    assert gen.step == 2
    before = jgen.load(source).params["dit"]["pixels"]["kernel"]
    assert 0 < np.abs(gen.params["dit"]["pixels"]["kernel"] - before).max() < 1e-2  # it went on from the weights
    mistake(lambda: train.command([str(run), "--data.name", "mnist"]), "mnist")  # its data is known now
    assert command([str(folder), str(tmp_path / "other"), *small, *data]) == 0
    assert json.loads((tmp_path / "other" / "config.json").read_text())["data_fingerprint"]
    mistake(
        lambda: command([str(folder), str(tmp_path / "x"), "--data.low-resolution", "2"]), "data.low_resolution is 2"
    )


@pytest.mark.slow
def test_the_loss_of_converted_latents_is_finite(made):
    """With learned variances, at the first step too."""
    gen, images = jgen.load(made["latent"][0]), np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1))
    batch = {"image": images.astype(np.uint8), "label": np.arange(32) % 10, "index": np.arange(32)}
    keys = jax.random.split(jax.random.key(0), 32)
    loss = jax.grad(lambda params: gen.model.phases[0].loss(params, gen.ctx, keys, batch)[0])
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(jax.jit(loss)(gen.params)))


# Mistakes.


@pytest.fixture
def folder(made, tmp_path):
    """A pipeline's folder that a test may damage."""
    return shutil.copytree(made["latent"][1], tmp_path / "folder")


def refused(folder, *words, options=()):
    """The command gives one line, and writes nothing."""
    run = folder.parent / "run"
    mistake(lambda: command([str(folder), str(run), *options]), *words)
    assert not run.exists() and not run.with_name("run-vae").exists()


def change_tensors(folder, change):
    path = folder / "transformer" / WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_config(folder, part="transformer", name="config.json", **values):
    path = folder / part / name
    document = json.loads(path.read_text()) | values
    path.write_text(json.dumps(document))


OTHER_BLOCK = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda t: t.pop("proj_out_1.bias"), ["lacks the tensor proj_out_1.bias"]),
        (lambda t: t.update(more=np.zeros(3, np.float32)), ["has the tensor more"]),
        (lambda t: t.update({"proj_out_2.bias": np.zeros(3, np.float32)}), ["proj_out_2.bias has shape (3,)", "(16,)"]),
        (lambda t: t.update({"proj_out_2.bias": np.zeros(16, np.int32)}), ["proj_out_2.bias is of I32"]),
        (lambda t: t.update({OTHER_BLOCK: t[OTHER_BLOCK] + 1}), [f"{OTHER_BLOCK} differs from", "all blocks have one"]),
    ],
)
def test_tensors_that_do_not_fit(folder, change, words):
    change_tensors(folder, change)
    refused(folder, *words)


@pytest.mark.parametrize(
    "part,values,words",
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, ["_class_name is 'SD3Transformer2DModel'", "UNet2D"]),
        ("transformer", {"_class_name": None}, ["_class_name is None"]),
        ("transformer", {"activation_fn": "geglu"}, ["activation_fn is 'geglu'", "gelu-approximate"]),
        ("transformer", {"num_layers": "2"}, ["num_layers is '2'", "int"]),
        ("transformer", {"num_layers": 3}, ["lacks the tensor transformer_blocks.2."]),
        ("transformer", {"out_channels": 3}, ["out_channels is 3", "in_channels = 2"]),
        ("transformer", {"caption_channels": 7}, ["caption_channels is 7", "no such option"]),
        ("transformer", {"sample_size": 5}, ["patch is 2", "5x5"]),
        ("transformer", {"in_channels": 4, "out_channels": 8}, ["latent_channels is 2", "in_channels is 4"]),
        ("vae", {"shift_factor": 0.1}, ["shift_factor is 0.1"]),
        ("vae", {"scaling_factor": 0.0}, ["scaling_factor is 0.0", "above zero"]),
        ("vae", {"use_quant_conv": False}, ["use_quant_conv is False"]),
        ("vae", {"norm_num_groups": 3}, ["divisible by groups = 3"]),
        ("vae", {"block_out_channels": 3}, ["block_out_channels is 3"]),
        ("scheduler", {"clip_sample": True}, ["clip_sample is true", "latents"]),
        ("scheduler", {"beta_schedule": "laplace"}, ["beta_schedule is 'laplace'"]),
        ("scheduler", {"_class_name": "PNDMScheduler"}, ["PNDMScheduler", "DDIMScheduler"]),
        ("scheduler", {"trained_betas": [0.1, 0.2]}, ["trained_betas is (0.1, 0.2)"]),
    ],
)
def test_configurations_that_jgen_lacks(folder, part, values, words):
    change_config(folder, part, "scheduler_config.json" if part == "scheduler" else "config.json", **values)
    refused(folder, *words)


@pytest.mark.parametrize(
    "values,words",
    [
        ({"freq_shift": 0}, ["freq_shift is 0"]),
        ({"attention_head_dim": None}, ["attention_head_dim is null", "[8, 16]"]),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, ["up_block_types must have attention"]),
        ({"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, ["down_block_types is"]),
        ({"sample_size": None}, ["sample_size is None"]),
        ({"block_out_channels": []}, ["block_out_channels is empty"]),
    ],
)
def test_u_nets_that_jgen_lacks(made, tmp_path, values, words):
    folder = shutil.copytree(made["unet"][1], tmp_path / "folder")
    change_config(folder, "unet", **values)
    refused(folder, *words)


def test_files_that_are_no_safetensors(folder, tmp_path):
    path, tensors = tmp_path / "x.safetensors", {"a.bias": np.zeros(4, np.float32)}
    write_raw(path, tensors, "F32")
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    damaged = [
        b"",
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"more",
        (10**15).to_bytes(8, "little") + whole[8:],
        (length - 1).to_bytes(8, "little") + whole[8:],
        pickle.dumps({"a.bias": 1}),
    ]
    for lie in ({"data_offsets": [0, 10**12]}, {"shape": [10**9]}, {"data_offsets": [8, 0]}, {"dtype": "F99"}):
        write_raw(path, tensors, "F32", **lie)
        damaged.append(path.read_bytes())
    for content in damaged:
        path.write_bytes(content)
        mistake(lambda: read_tensors(path, {"a.bias": (4,)}), f"{path} is damaged")
    path = folder / "transformer" / WEIGHTS
    path.write_bytes(damaged[-1])
    refused(folder, f"{path} is damaged")


def test_weights_that_are_not_there_or_pickled(folder):
    path = folder / "transformer" / WEIGHTS
    path.unlink()
    refused(folder, f"there is no {path}")
    (path.parent / f"{WEIGHTS}.index.json").write_text("{}")
    refused(folder, "in parts", "max_shard_size")
    pickled = path.parent / "diffusion_pytorch_model.bin"
    pickled.write_bytes(pickle.dumps({"proj_out_1.bias": 1}))
    refused(folder, f"{pickled} is pickled", "safe_serialization=True")
    refused(pickled, f"{pickled} is pickled")


def test_without_a_scheduler_the_noise_is_that_of_ddpm(folder, capsys):
    shutil.rmtree(folder / "scheduler")
    model, _ = reading.read_transformer(*reading.find(folder), None)
    assert "no scheduler_config.json" in capsys.readouterr().err
    objective = model.config.objective
    assert (objective.schedule, objective.num_timesteps, objective.sampling.clip) == ("linear", 1000, False)


def test_folders_that_are_no_models(folder, tmp_path, made):
    refused(tmp_path / "nothing", "there is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not in diffusers' layout", "config.json")
    path = folder / "transformer" / "config.json"
    for content, word in (("{", "cannot be read"), ("[1]", "no JSON object"), ("\x00", "cannot be read")):
        path.write_text(content)
        refused(folder, str(path), word)
    change = {"_class_name": "Transformer2DModel", "sample_size": 4}
    path.write_text(json.dumps(change))  # whose defaults are others
    refused(folder, "lacks attention_head_dim")
    refused(made["unet"][1], "0 classes", options=["--null-class"])
    refused(made["unet"][1], "images (8, 8, 1)", options=["--data.name", "digits", "--data.size", "4"])


def test_runs_that_diffusers_has_no_model_of(cache, made, tmp_path):
    run, folder = made["dit"]
    mistake(lambda: command([str(run), str(folder), "--to-diffusers"]), "is not empty")
    mistake(lambda: command([str(folder), str(run)]), "is a run already")
    mistake(lambda: command([str(run), str(tmp_path / "x"), "--to-diffusers", "--seed", "3"]), "--seed", "nothing")
    mistake(lambda: command([str(folder), str(tmp_path / "x"), "--step", "3"]), "--to-diffusers")
    mistake(lambda: command([str(folder)]), "which weights")
    flow = dit.Config(flow_matching.Config(network=DIT))
    one = write(tmp_path / "flow", flow, DIGITS, random_params(dit.make(flow, DIGITS)))
    mistake(lambda: command([str(one), str(tmp_path / "x"), "--to-diffusers"]), "diffusers has models for ddpm, dit")
    assert not (tmp_path / "x").exists()


def test_networks_that_diffusers_lacks():
    wide, adm, base = replace(DIT, mlp_ratio=2.0), replace(UNET, architecture="adm"), replace(UNET, base=16)
    mistake(lambda: dit_names.fields_of(wide, (8, 8), 1, 1, 10), "mlp_ratio is 2.0")
    mistake(lambda: dit_names.fields_of(DIT, (8, 8), 1, 1, 0), "not class-conditional")
    mistake(lambda: dit_names.fields_of(DIT, (8, 4), 1, 1, 10), "8x4", "square")
    mistake(lambda: unet_names.fields_of(adm, (8, 8), 1, 0), "architecture is adm")
    mistake(lambda: unet_names.fields_of(base, (8, 8), 1, 0), "base is 16")
    mistake(lambda: unet_names.fields_of(replace(UNET, patch=2), (8, 8), 1, 0), "patch is 2")
