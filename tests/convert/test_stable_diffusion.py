"""Folders of Stable Diffusion's pipelines: loaded, converted, trained on, and what is wrong with them in one line."""

import dataclasses
import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from safetensors.numpy import load_file, save_file
from stable_diffusion_folder import LENGTH, vocabulary, write_document, write_folder

import jgen
import sample
import train
from jgen.convert import condition_unet as unet_names
from jgen.convert import text_scheduler
from jgen.convert.__main__ import command
from jgen.convert.clip_text import read_tokenizer
from jgen.convert.files import WEIGHTS
from jgen.core import keys as rng
from jgen.data.clip_text import ClipTokenizer
from jgen.data.text import load_tokenizers, save_tokenizers
from jgen.nn import condition_unet
from jgen.prob.schedules import make_schedule
from jgen.samplers.diffusion import Sampling

KEY, TEXT = jax.random.key(3), "a red cat"
OPTIONS = {"steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folders(cache, tmp_path_factory):
    """Of one text encoder and of two."""
    base = tmp_path_factory.mktemp("published")
    return Lazily(lambda num: write_folder(base / str(num), num))


@pytest.fixture(scope="module")
def loaded(folders):
    return Lazily(lambda num: jgen.load(folders[num]))


class Lazily(dict):
    """What a function gives for each key, made when it is asked for."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, key):
        self[key] = self.make(key)
        return self[key]


NUMBERS = [1, pytest.param(2, marks=pytest.mark.slow)]


@pytest.fixture
def folder(folders, tmp_path):
    """A folder that a test may damage."""
    return shutil.copytree(folders[1], tmp_path / "folder")


@pytest.mark.slow
def test_the_tokenizer_of_a_folder(folders):
    tokenizer = read_tokenizer(folders[1] / "tokenizer")
    ids = tokenizer.ids
    wanted = [ids["<|startoftext|>"], ids["a</w>"], ids["red</w>"], ids["ca"], ids["t</w>"]]
    tokens = tokenizer.encode("A  red\ncat")
    np.testing.assert_array_equal(tokens, wanted + [ids["<|endoftext|>"]] * (LENGTH - 5))
    assert tokenizer.decode(tokens) == "a red cat" and tokenizer.left_out("a red cat") == ""
    assert tokenizer.left_out("a red cat 1 2 3 4 5 6").replace(" ", "") == "456"
    assert ClipTokenizer.from_json(tokenizer.to_json()) == tokenizer
    other = read_tokenizer(folders[2] / "tokenizer_2")
    assert other.padding == ("!",) and other.encode("x")[-1] == ids["!"]
    mistake(lambda: tokenizer.decode([10**6] * LENGTH), "token 1000000 is not one of")


def test_a_tokenizer_in_one_file_is_the_same(folders, tmp_path):
    tokenizer = read_tokenizer(folders[1] / "tokenizer")
    merges = [list(pair) for pair in tokenizer.merges]
    write_document(tmp_path / "tokenizer.json", {"model": {"vocab": tokenizer.ids, "merges": merges}})
    write_document(tmp_path / "tokenizer_config.json", {"model_max_length": LENGTH, "pad_token": "<|endoftext|>"})
    assert read_tokenizer(tmp_path) == tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("num", NUMBERS)
def test_a_folder_draws_images_of_texts(loaded, num):
    gen = loaded[num]
    assert gen.model.data.fields["text"].shape == ((LENGTH,) if num == 1 else (2, LENGTH))
    texts = [TEXT, "a hat", TEXT]
    images = gen.sample(KEY, 3, text=texts, **OPTIONS)
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8 and images.std() > 10
    assert np.any(images[0] != gen.sample(KEY, 3, text="a hat", **OPTIONS)[0])  # the text has a part in it
    negative = gen.sample(KEY, 3, text=texts, negative_text="hat", **OPTIONS)
    assert np.any(images != negative)
    # Without a negative text it is the empty one, or in XL features of zeros.
    empty = gen.sample(KEY, 3, text=texts, negative_text="", **OPTIONS)
    assert np.array_equal(images, empty) == (num == 1)


@pytest.mark.slow
def test_guidance_is_a_line_through_two_denoised_latents(loaded):
    """By the formula, of features that are encoded apart from the sampler."""
    from jgen.models.text_to_image import stable_diffusion as sd
    from jgen.samplers.system import guided

    gen = loaded[2]
    system = gen.model.sample.args[0]
    tokens = {
        name: gen.tokenizers["text"].encode(text)[None] for name, text in (("text", TEXT), ("negative_text", "b"))
    }
    z, t = jax.random.normal(KEY, (1, 4, 4, 4)), jnp.full(1, 0.5)

    @jax.jit
    def denoised(params, ctx, text):
        return sd.denoise(system, params, ctx, z, t, sd.embedded(system, ctx.extra, text))

    @jax.jit
    def mixed_by_the_sampler(params, ctx, tokens):
        cond = sd.with_context(system, ctx.extra, tokens)
        return guided(denoising, params, ctx, o)(z, t, {"cond": cond, "null": sd.without_text(cond)})

    denoising, o = gen.model.sample.args[1].args[0].diffusion.sample.args[0], gen.model.sampling
    strong, weak = (denoised(gen.params, gen.ctx, text) for text in tokens.values())
    mixed = mixed_by_the_sampler(gen.params, gen.ctx, tokens)
    assert o.guidance_scale == 5.0
    np.testing.assert_allclose(mixed, weak + 5.0 * (strong - weak), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num", NUMBERS)
def test_a_converted_run_draws_the_same(folders, loaded, tmp_path, num, capsys):
    run = tmp_path / "run"
    assert command([str(folders[num]), str(run)]) == 0
    assert f"{run}-vae and {run}" in capsys.readouterr().out
    gen = jgen.load(run)
    images = gen.sample(KEY, 3, text=TEXT, **OPTIONS)
    np.testing.assert_array_equal(images, loaded[num].sample(KEY, 3, text=TEXT, **OPTIONS))
    assert gen.config.model == loaded[num].config.model
    mistake(lambda: jgen.load(run, dtype="bfloat16"), "dtype is bfloat16", "is a run")
    saved = load_tokenizers(run / "tokenizers.json")
    changed = ClipTokenizer(LENGTH, saved["text"].vocabulary, saved["text"].merges[1:], saved["text"].padding)
    save_tokenizers(run / "tokenizers.json", {"text": changed})
    mistake(lambda: jgen.load(run), "the tokenizer of text is not the one", "tokenizers.json")


@pytest.mark.slow
@pytest.mark.parametrize("num", NUMBERS)
def test_a_run_is_written_back(folders, loaded, tmp_path, num):
    """As a folder that loads as the same model, and of the same tensors."""
    run, back = tmp_path / "run", tmp_path / "back"
    assert command([str(folders[num]), str(run)]) == command([str(run), str(back), "--to-diffusers"]) == 0
    gen, wanted = jgen.load(back), loaded[num]
    assert gen.config.model == wanted.config.model and gen.tokenizers == wanted.tokenizers
    for one, other in ((gen.params, wanted.params), (gen.ctx.extra, wanted.ctx.extra)):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    jax.tree.map(np.testing.assert_array_equal, gen.ctx.frozen, wanted.ctx.frozen)
    before = {path.relative_to(folders[num]) for path in folders[num].rglob("*") if path.is_file()}
    assert before <= {path.relative_to(back) for path in back.rglob("*")}
    for path in before:
        if path.suffix == ".safetensors" and path.parts[0] != "unet":  # of version 1 in the layout of convolutions
            tensors = load_file(back / path)
            assert tensors.keys() == load_file(folders[num] / path).keys()
    mistake(lambda: command([str(run), str(back), "--to-diffusers"]), "back is not empty")


SAMPLERS = [
    {"sampler": "ddim", "spacing": "trailing"},
    {"sampler": "ddim", "spacing": "linspace", "end": "first"},
    {"sampler": "plms", "offset": 1, "spacing": "leading", "end": "first"},
    {"sampler": "euler_ancestral", "spacing": "linspace"},
    {"sampler": "dpmpp_2m", "spacing": "karras"},
    {"sampler": "dpmpp_2m_sde", "spacing": "leading", "offset": 2},
    {"sampler": "unipc", "spacing": "linspace"},
]


@pytest.mark.parametrize("options", SAMPLERS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_schedulers_are_read_as_they_were_written(tmp_path, options, prediction):
    chain = {"num_timesteps": 500, "schedule": "quadratic", "beta_1": 0.001, "beta_T": 0.02, "prediction": prediction}
    sampling = Sampling(**options, guidance_scale=7.5, clip=False)
    if options["spacing"] == "karras":
        alpha_bar = make_schedule("quadratic", 500, 0.001, 0.02).alpha_bar[1]
        sampling = dataclasses.replace(sampling, low=float(np.sqrt(1 / alpha_bar - 1)))
    name, fields = text_scheduler.document_of(chain, sampling)
    document = {"_class_name": name, **fields}
    assert text_scheduler.chain_of(document, tmp_path) == chain
    assert text_scheduler.sampling_of(document, tmp_path, chain, 7.5, None) == sampling


@pytest.mark.parametrize(
    "options,words",
    [
        ({"sampler": "heun"}, ["sampling.sampler is 'heun'", "ddim"]),
        ({"spacing": "uniform"}, ["sampling.spacing is 'uniform'", "trailing"]),
        ({"spacing": "karras"}, ["sampling.spacing is 'karras'"]),
        ({"spacing": "trailing", "eta": 0.5}, ["eta 0.5", "DDIMScheduler"]),
    ],
)
def test_samplers_that_diffusers_has_no_file_of(options, words):
    chain = {"num_timesteps": 500, "schedule": "quadratic", "beta_1": 0.001, "beta_T": 0.02, "prediction": "eps"}
    mistake(lambda: text_scheduler.document_of(chain, Sampling(**options, clip=False)), *words)


def test_networks_that_diffusers_has_no_file_of():
    network = dataclasses.replace(condition_unet.TINY, middle_depth=0)
    mistake(lambda: unet_names.fields_of(network, 8, 4, True), "network.middle_depth is 0", "UNet2DConditionModel")
    network = dataclasses.replace(condition_unet.TINY, depths=(0, 2), middle_depth=1)
    mistake(lambda: unet_names.fields_of(network, 8, 4, True), "network.middle_depth is 1", "as many as at 2")


@pytest.mark.slow
def test_pictures_are_edited_and_filled_in_by_text(loaded):
    gen = loaded[1]
    images = gen.sample(KEY, 2, text=TEXT, steps=2)
    near = gen.edit(KEY, images, text=TEXT, strength=0.2, steps=10).astype(int)
    far = gen.edit(KEY, images, text=TEXT, strength=1.0, steps=10).astype(int)
    assert np.abs(near - images).mean() < np.abs(far - images).mean()
    keep = np.arange(8)[:, None] < np.full(8, 4)
    filled = gen.inpaint(KEY, images, keep, text="a hat", steps=2)
    np.testing.assert_array_equal(filled[:, keep], images[:, keep])
    assert np.any(filled != images)


@pytest.mark.slow
def test_a_run_is_sampled_by_command(folders, tmp_path):
    run, out = tmp_path / "run", tmp_path / "x.npz"
    assert command([str(folders[1]), str(run)]) == 0
    words = ["--num", "2", "--text", TEXT, "--negative-text", "a hat", "--steps", "2", "--out", str(out)]
    assert sample.command([str(run), *words]) == 0
    images = jgen.load(run).sample(jax.random.key(0), 2, text=TEXT, negative_text="a hat", steps=2)
    np.testing.assert_array_equal(np.load(out)["images"], images)


@pytest.mark.slow
def test_half_precision_is_near(folders, loaded):
    half = jgen.load(folders[1], dtype="bfloat16")
    assert half.config.model.network.dtype == half.config.model.text_encoder.dtype == "bfloat16"
    one, other = (gen.sample(KEY, 3, text=TEXT, **OPTIONS).astype(int) for gen in (loaded[1], half))
    assert 0 < np.abs(one - other).mean() < 5
    mistake(lambda: jgen.load(folders[1], dtype="float16"), "dtype is 'float16'", "bfloat16")


@pytest.mark.slow
def test_the_loss_trains_the_u_net(loaded):
    """All its weights, and nothing else; the text is dropped for some."""
    gen = loaded[2]
    assert gen.model.phases[0].trains == ("unet",) and set(gen.params) == {"unet"}
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    tokens = np.stack([gen.tokenizers["text"].encode(text) for text in "abcd"])
    batch, keys = {"image": images, "text": tokens}, rng.image_keys(KEY, jnp.arange(4))

    def loss(params):
        return gen.model.phases[0].loss(params, gen.ctx, keys, batch)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(gen.params)
    assert np.isfinite(value) and value > 0
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_a_converted_run_is_trained_on(cache, folder, tmp_path):
    """On the captions of rendered shapes, by the folder's tokenizer."""
    unet = json.loads((folder / "unet" / "config.json").read_text())
    write_document(folder / "unet" / "config.json", unet | {"sample_size": 16})
    run = tmp_path / "run"
    words = ["--data.name", "shapes", "--train.steps", "2", "--train.batch-size", "4", "--train.validate-every", "0"]
    words += ["--train.samples-per-class", "1"]
    assert command([str(folder), str(run), *words]) == 0
    before = jgen.load(run)
    assert train.command([str(run)]) == 0
    gen = jgen.load(run, ema=False)
    assert gen.step == 2 and gen.tokenizers["text"] == read_tokenizer(folder / "tokenizer")
    same = jax.tree.map(np.array_equal, before.params, gen.params)
    assert not any(jax.tree.leaves(same))
    jax.tree.map(np.testing.assert_array_equal, before.ctx.extra, gen.ctx.extra)


# Mistakes.


def refused(folder, *words):
    """Loading and converting give the same line, and nothing is written."""
    run = folder.parent / "run"
    for call in (lambda: jgen.load(folder), lambda: command([str(folder), str(run)])):
        mistake(call, *words)
    assert not run.exists() and not run.with_name("run-vae").exists()


def change_document(folder, path, **values):
    write_document(folder / path, json.loads((folder / path).read_text()) | values)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_folder_that_lacks_a_part_names_it(folder, part):
    name = {"tokenizer": "vocab.json", "scheduler": "scheduler_config.json"}.get(part, "config.json")
    (folder / part / name).unlink()
    refused(folder, str(folder / part), name)
    shutil.rmtree(folder / part)
    refused(folder, f"lacks {part}/", "StableDiffusionPipeline")


@pytest.mark.parametrize(
    "path,values,words",
    [
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, ["'StableDiffusion3Pipeline'", "XLPipeline"]),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, ["_class_name is 'UNet2DModel'"]),
        ("unet/config.json", {"in_channels": 9}, ["in_channels is 9", "out_channels = 4"]),
        ("unet/config.json", {"cross_attention_dim": 16}, ["network.context is 16", "give 8"]),
        ("unet/config.json", {"attention_head_dim": [1]}, ["attention_head_dim is (1,)", "or 2"]),
        ("unet/config.json", {"encoder_hid_dim": 7}, ["encoder_hid_dim is 7", "no such option"]),
        ("unet/config.json", {"sample_size": None}, ["sample_size is null"]),
        ("unet/config.json", {"addition_embed_type": "image"}, ["addition_embed_type is 'image'"]),
        ("vae/config.json", {"latent_channels": 8}, ["latent_channels is 8", "in_channels is 4"]),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, ["'T5EncoderModel'", "CLIPTextModel"]),
        ("text_encoder/config.json", {"hidden_act": "relu"}, ["hidden_act is 'relu'"]),
        ("text_encoder/config.json", {"vocab_size": 500}, ["vocab_size of 500", "not the tokenizer"]),
        ("text_encoder/config.json", {"max_position_embeddings": 5}, ["model_max_length is 9", "5 positions"]),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, ["'LCMScheduler'", "PNDMScheduler"]),
        ("scheduler/scheduler_config.json", {"skip_prk_steps": False}, ["skip_prk_steps is False"]),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, ["rescale_betas_zero_snr is True"]),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, ["prediction_type is 'flow'"]),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, ["tokenizer_class", "T5Tokenizer"]),
    ],
)
def test_what_jgen_lacks_is_named(folder, path, values, words):
    change_document(folder, path, **values)
    refused(folder, *words)


@pytest.mark.slow
def test_weights_that_are_pickled_or_do_not_fit(folder):
    path = folder / "text_encoder" / "model.safetensors"
    whole = load_file(path)
    save_file({**whole, "text_model.embeddings.position_ids": np.arange(LENGTH)[None]}, path)  # old files have them
    jgen.load(folder)
    save_file({name: array for name, array in whole.items() if "fc1.bias" not in name}, path)
    refused(folder, "lacks the tensor text_model.encoder.layers.0.mlp.fc1.bias")
    path.unlink()
    refused(folder, f"there is no {path}")
    pickled = path.with_name("pytorch_model.bin")
    pickled.write_bytes(pickle.dumps({"x": 1}))
    refused(folder, f"{pickled} is pickled", "safe_serialization=True")


def test_weights_of_half_precision_alone_are_read(folder, loaded):
    path = folder / "unet" / WEIGHTS
    tensors = {name: array.astype(np.float16) for name, array in load_file(path).items()}
    path.unlink()
    save_file(tensors, path.with_suffix(".fp16.safetensors"))
    gen = jgen.load(folder)
    kernel, wanted = (one.params["unet"]["time1"]["kernel"] for one in (gen, loaded[1]))
    np.testing.assert_array_equal(kernel, wanted.astype(np.float16).astype(np.float32))


def test_tokenizers_that_are_damaged_or_differ(folders, folder, tmp_path):
    pieces = {piece: i for i, piece in enumerate(vocabulary())}
    for change, word in (
        ({**pieces, "more": 10**6}, "its ids are not 0, 1, 2"),
        ({piece: i for piece, i in pieces.items() if i < 510}, "lacks"),
        ({f"{piece}?": i for piece, i in pieces.items()}, "lacks <|startoftext|>"),
    ):
        write_document(folder / "tokenizer" / "vocab.json", change)
        refused(folder, f"{folder / 'tokenizer'} is damaged", word)
    two = shutil.copytree(folders[2], tmp_path / "two")
    merges = two / "tokenizer_2" / "merges.txt"
    merges.write_text("\n".join(merges.read_text().split("\n")[:-2]))
    refused(two, "tokenizer_2 is another tokenizer")


def test_texts_that_do_not_fit(loaded, capsys):
    gen = loaded[1]
    gen.sample(KEY, 3, text=TEXT, **OPTIONS)
    assert "warning" not in capsys.readouterr().err
    gen.sample(KEY, 3, text=f"{TEXT} 1 2 3 4 5 6", **OPTIONS)
    assert "cut to the 9 tokens" in capsys.readouterr().err
    mistake(lambda: gen.sample(KEY, 3), "text is missing")
    mistake(lambda: gen.sample(KEY, 3, text=""), "text is ''")
    mistake(lambda: gen.sample(KEY, 3, text=["a"] * 2), "text has shape (2, 9)")
    mistake(lambda: gen.sample(KEY, 3, text=TEXT, clip=True), "clip is True", "latents")
    mistake(lambda: gen.sample(KEY, 3, text=TEXT, negative_text="b", guidance_scale=1.0), "guidance_scale is 1")
    mistake(lambda: jgen.load("x", step=3), "there is no run")


def test_options_of_runs_are_not_those_of_folders(folders):
    mistake(lambda: jgen.load(folders[1], step=3), "is a diffusers folder: step applies to runs of jgen only")
    mistake(lambda: jgen.load(folders[1], ema=False), "ema applies to runs of jgen only")
    mistake(lambda: sample.command([str(folders[1]), "--text", TEXT]), "pipeline in diffusers' layout", "jgen.convert")
