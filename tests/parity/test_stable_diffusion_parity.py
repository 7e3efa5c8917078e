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
from diffusers import (  # noqa: E402
    DDIMScheduler,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

import jgen  # noqa: E402
from jgen.convert import clip_text as text_names  # noqa: E402
from jgen.core import keys as rng  # noqa: E402
from jgen.data.clip_text import ClipTokenizer  # noqa: E402
from jgen.nn.clip_text import ClipTextEncoder  # noqa: E402

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
    limit = {"rtol": 0, "atol": 2e-5}
    np.testing.assert_allclose(ours.last, theirs.last_hidden_state, **limit)
    np.testing.assert_allclose(ours.before_last, theirs.hidden_states[-2], **limit)
    np.testing.assert_allclose(ours.pooled, pooled, **limit)


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
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_folder_samples_the_same(loaded, name):
    pipe, _, gen = loaded(name, PIPELINES[name])
    keys = rng.image_keys(KEY, jnp.arange(4))
    negative = {"negative_text": "a hat"} if name != "1 DDIM" else {}
    ours = gen.sample(KEY, 4, text=TEXTS, steps=6, guidance_scale=3.0, **negative).astype(int)
    theirs = {"negative_prompt": ["a hat"] * 4} if negative else {}
    images = peer.drawn(pipe, keys, TEXTS, num_inference_steps=6, guidance_scale=3.0, **theirs)
    assert ours.shape == (4, 32, 32, 3) and ours.std() > 10
    assert np.abs(ours[0] - ours[1]).max() > 10
    print(name, np.abs(ours - images).max(), ours.std())
    assert np.abs(ours - images).max() <= 1
