"""Stable Diffusion's folders against diffusers and transformers: tokens, features, networks and images."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import stable_diffusion_peer as peer  # noqa: E402
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

import jgen  # noqa: E402
from jgen.convert import clip_text as text_names  # noqa: E402
from jgen.convert import condition_unet as unet_names  # noqa: E402
from jgen.convert import files  # noqa: E402
from jgen.convert.__main__ import command  # noqa: E402
from jgen.convert.layers import no_memory  # noqa: E402
from jgen.core import keys as rng  # noqa: E402
from jgen.data.clip_text import ClipTokenizer  # noqa: E402
from jgen.nn.clip_text import ClipTextEncoder  # noqa: E402
from jgen.nn.condition_unet import ConditionUNet  # noqa: E402
from jgen.nn.cross_attention import Tokens  # noqa: E402

TEXTS = ["a red cat", "Two red cats, one hat!", "naïve 猫 😀", "x"]
KEY = jax.random.key(5)


def odd_strings():
    """A thousand strings of every kind of character, and some that tokenizers have been wrong on."""
    source = random.Random(0)
    pools = [range(32, 127), range(0, 0x300), range(0x4E00, 0x9FFF), range(0x1F300, 0x1F700), range(0, 0xD800)]
    texts = ["", " ", "x" * 10_000, "😀" * 200, "cafe\u0301 CAFÉ", "don't I'LL 'RE", "a<|endoftext|>b"]
    texts += ["\x00\x07\u200b", "hello!!! 12,345.67", "İstanbul ẞ ſ ǅ", "a\u00a0b\u3000c\r\n\td", "نص عربي", "👩‍👩‍👧 ❤️"]
    for _ in range(1000):
        pool, length = source.choice(pools), source.choice([1, 5, 30, 200])
        texts.append("".join(chr(source.choice(pool)) for _ in range(length)))
    return texts


@pytest.mark.parametrize("padding", [peer.END, "!"])
def test_tokens(padding):
    vocabulary, merges = peer.published_pieces()
    ours = ClipTokenizer(77, tuple(vocabulary), tuple(merges), (padding,))
    theirs = peer.tokenizer(vocabulary, merges, padding)
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    for text in odd_strings():
        np.testing.assert_array_equal(ours.encode(text), theirs(text, **options).input_ids, err_msg=repr(text))


@pytest.mark.parametrize("cls", [CLIPTextModel, CLIPTextModelWithProjection])
def test_text_encoder(cls, tmp_path):
    config = peer.text_config(16, hidden_act="quick_gelu", eos_token_id=516, projection_dim=20)
    model = peer.randomised(cls(config), 0.1)
    model.save_pretrained(tmp_path)
    encoder = text_names.encoder_of(json.loads((tmp_path / "config.json").read_text()), tmp_path)
    tokens = np.random.default_rng(0).integers(0, 515, (3, 77))
    tokens[0, 9:], tokens[1, 40] = 516, 516
    tokens[2, 76] = 516
    shapes = jax.eval_shape(ClipTextEncoder(encoder).init, jax.random.key(0), tokens)["params"]
    wanted = text_names.tensors_of(encoder, jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes))
    names = {text_names.new_name(name): tensor for name, tensor in model.state_dict().items()}
    assert {name: array.shape for name, array in wanted.items()} == {n: tuple(x.shape) for n, x in names.items()}
    params = text_names.params_of(encoder, {name: tensor.numpy() for name, tensor in names.items()})
    ours = jax.jit(ClipTextEncoder(encoder).apply)({"params": params}, tokens)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), output_hidden_states=True)
    pooled = theirs.text_embeds if cls is CLIPTextModelWithProjection else theirs.pooler_output
    np.testing.assert_allclose(ours.last, theirs.last_hidden_state, rtol=0, atol=2e-5)
    np.testing.assert_allclose(ours.before_last, theirs.hidden_states[-2], rtol=0, atol=2e-5)
    np.testing.assert_allclose(ours.pooled, pooled, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def loaded(cache, tmp_path_factory):
    """{version: (pipeline, its folder, what jgen loads)}."""
    made = {}

    def load(name, make):
        if name not in made:
            pipe, folder = make(), tmp_path_factory.mktemp(name)
            pipe.save_pretrained(folder)
            made[name] = pipe, folder, jgen.load(folder)
        return made[name]

    return load


PIPELINES = {
    "1 PNDM": peer.version_1,
    "1 DDIM": lambda: peer.version_1(DDIMScheduler(**peer.CHAIN, clip_sample=False, set_alpha_to_one=False)),
    "2 v": peer.version_2,
    "2 epsilon": lambda: peer.version_2("epsilon"),
    "2 sample": lambda: peer.version_2("sample"),
    "XL": peer.version_xl,
    "XL, no negative": peer.version_xl,
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_folder_samples_the_same(loaded, name):
    pipe, _, gen = loaded(name, PIPELINES[name])
    keys = rng.image_keys(KEY, jnp.arange(4))
    negative = {} if name in ("1 DDIM", "XL, no negative") else {"negative_text": "a hat"}
    ours = gen.sample(KEY, 4, text=TEXTS, steps=6, guidance_scale=3.0, **negative).astype(int)
    theirs = {"negative_prompt": ["a hat"] * 4} if negative else {}
    images = peer.drawn(pipe, keys, TEXTS, num_inference_steps=6, guidance_scale=3.0, **theirs)
    assert ours.shape == (4, 32, 32, 3) and ours.std() > 10
    assert np.abs(ours[0] - ours[1]).max() > 10
    assert np.abs(ours - images).max() <= 1


@pytest.mark.parametrize("name", ["1 PNDM", "2 v", "XL"])
def test_a_run_that_is_written_back_is_the_same_pipeline(loaded, tmp_path, name):
    """diffusers opens the folder that jgen writes, and draws the images of the pipeline that it came from."""
    pipe, folder, _ = loaded(name, PIPELINES[name])
    run, back = tmp_path / "run", tmp_path / "back"
    assert command([str(folder), str(run)]) == command([str(run), str(back), "--to-diffusers"]) == 0
    opened = type(pipe).from_pretrained(back)
    roles = ["unet", "vae", *(role for role in ("text_encoder", "text_encoder_2") if hasattr(pipe, role))]
    for role in roles:
        one, other = (getattr(each, role).state_dict() for each in (opened, pipe))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key].reshape(-1), other[key].reshape(-1)) for key in one)
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    for role in (role.replace("text_encoder", "tokenizer") for role in roles[2:]):
        for text in odd_strings()[::20]:
            one, other = (getattr(each, role)(text, **options).input_ids for each in (opened, pipe))
            assert one == other, text
    keys = rng.image_keys(KEY, jnp.arange(4))
    words = {"num_inference_steps": 6, "guidance_scale": 3.0}
    one, other = (peer.drawn(each, keys, TEXTS, **words) for each in (opened, pipe))
    assert np.abs(one - other).max() <= 1


def test_half_precision_is_near(loaded):
    _, folder, gen = loaded("1 PNDM", peer.version_1)
    one = gen.sample(KEY, 4, text=TEXTS, steps=4).astype(int)
    other = jgen.load(folder, dtype="bfloat16").sample(KEY, 4, text=TEXTS, steps=4).astype(int)
    assert 0 < np.abs(one - other).mean() < 4


# Schedulers whose times are not jgen's: at the same times, the steps are the same.


def test_dpm_solver_at_the_same_times(loaded):
    pipe, _, gen = loaded("1 DDIM", PIPELINES["1 DDIM"])
    scheduler, own = DPMSolverMultistepScheduler(**peer.CHAIN), pipe.scheduler
    scheduler.set_timesteps(6)
    times = tuple((int(t) + 1) / 1000 for t in scheduler.timesteps)
    ours = gen.sample(KEY, 4, text=TEXTS, sampler="dpmpp_2m", times=times, guidance_scale=3.0)
    pipe.scheduler = scheduler
    try:
        keys = rng.image_keys(KEY, jnp.arange(4))
        images = peer.drawn(pipe, keys, TEXTS, num_inference_steps=6, guidance_scale=3.0)
    finally:
        pipe.scheduler = own
    assert np.abs(ours.astype(int) - images).max() <= 1


# The shapes of published configurations.

UNET_1 = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
UNET_2 = UNET_1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
UNET_XL = UNET_2 | {
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "conv_in_kernel": 3,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "projection_class_embeddings_input_dim": 2816,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
PUBLISHED = {  # and the number of their parameters, in millions
    "1": (UNET_1, 859.5, [(CLIPTextModel, CLIP_L | {"eos_token_id": 2}, 123.1)]),
    "2": (UNET_2, 865.9, [(CLIPTextModel, CLIP_H | {"hidden_act": "gelu", "projection_dim": 512}, 340.4)]),
    "XL": (
        UNET_XL,
        2567.5,
        [
            (CLIPTextModel, CLIP_L | {"eos_token_id": 2}, 123.1),
            (CLIPTextModelWithProjection, CLIP_G | {"hidden_act": "gelu", "projection_dim": 1280}, 694.7),
        ],
    ),
}


def count(shapes):
    """Numbers of parameters in millions."""
    return round(sum(np.prod(shape) for shape in shapes.values()) / 1e6, 1)


@pytest.mark.parametrize("version", PUBLISHED)
def test_published_configurations_have_the_same_tensors(version, tmp_path):
    """U-Net and text encoders of the published sizes have the tensors of diffusers' and transformers', and no other."""
    document, millions, encoders = PUBLISHED[version]
    with torch.device("meta"):
        theirs = {name: tuple(x.shape) for name, x in UNet2DConditionModel(**document).state_dict().items()}
    network = unet_names.network_of(files.read_fields(unet_names.Fields, document, tmp_path), tmp_path)
    side = document["sample_size"]
    inputs = [jnp.zeros((1, side, side, 4)), jnp.zeros(1), Tokens(jnp.zeros((1, 77, network.context)))]
    inputs += [jnp.zeros((1, network.pooled)), jnp.zeros((1, 6))] if network.pooled else []
    shapes = jax.eval_shape(ConditionUNet(network, 4).init, jax.random.key(0), *inputs)["params"]
    ours = unet_names.tensors_of(network, no_memory(shapes), document.get("use_linear_projection", False))
    assert {name: array.shape for name, array in ours.items()} == theirs and count(theirs) == millions
    for cls, sizes, millions in encoders:
        with torch.device("meta"):
            state = cls(CLIPTextConfig(**sizes)).state_dict()
        theirs = {text_names.new_name(name): tuple(x.shape) for name, x in state.items()}
        encoder = text_names.encoder_of({**sizes, "architectures": [cls.__name__]}, tmp_path)
        tokens = jnp.zeros((1, 77), jnp.int32)
        shapes = jax.eval_shape(ClipTextEncoder(encoder).init, jax.random.key(0), tokens)["params"]
        ours = text_names.tensors_of(encoder, no_memory(shapes))
        assert {name: array.shape for name, array in ours.items()} == theirs and count(theirs) == millions
