"""Converted weights against diffusers' own models: outputs, the shapes of published configurations, whole pipelines."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers import (  # noqa: E402
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
    VQModel,
)

import jgen  # noqa: E402
from jgen.convert import autoencoder_kl as autoencoder_names  # noqa: E402
from jgen.convert import reading  # noqa: E402
from jgen.convert.__main__ import Arguments, command  # noqa: E402
from jgen.convert.layers import attention, to_params  # noqa: E402
from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import DataSpec, ImageSpec  # noqa: E402
from jgen.models.diffusion import ddpm  # noqa: E402
from jgen.models.vae import autoencoder_kl, patch_adversary  # noqa: E402
from jgen.nn import dit, first_stage, unet  # noqa: E402

B = 3
SMALL_DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8}
SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "freq_shift": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SMALL_KL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 16,
}


def randomised(model, scale=0.1):
    """The model with weights of which none are zero, and with one embedding of time and class, as published."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    if isinstance(model, DiTTransformer2DModel):
        embedder = model.transformer_blocks[0].norm1.emb.state_dict()
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(embedder)
    return model.eval()


def converted(model, folder, *options):
    """The jgen run of a model that diffusers has written."""
    model.save_pretrained(folder / "model")
    assert command([str(folder / "model"), str(folder / "run"), *options]) == 0
    return jgen.load(folder / "run")


def nchw(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def assert_equal(ours, theirs, limit=1e-4):
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit * max(1.0, np.abs(theirs).max()))


def inputs(channels, size=8):
    x = jax.random.normal(jax.random.key(0), (B, size, size, channels))
    return x, np.array([0, 17, 999]), np.array([9, 0, 3])


@pytest.mark.parametrize("outputs", [3, 6])
@pytest.mark.parametrize("patch", [2, 4])
def test_dit(cache, tmp_path, outputs, patch):
    sizes = {"in_channels": 3, "out_channels": outputs, "num_embeds_ada_norm": 10, "patch_size": patch}
    model = randomised(DiTTransformer2DModel(**SMALL_DIT, **sizes))
    gen = converted(model, tmp_path)
    objective, (x, t, label) = gen.config.model.objective, inputs(3)
    assert (objective.bound_variance == "learned") == (outputs == 6) and objective.first_timestep == 0
    network = dit.make_dit(objective.network, gen.model.images, 11, outputs)
    ours = jax.jit(network.apply)({"params": gen.params["dit"]}, x, t, label, None)
    assert_equal(ours, model(nchw(x), torch.from_numpy(t), torch.from_numpy(label)).sample)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"downsample_padding": 0, "norm_eps": 1e-6, "flip_sin_to_cos": False, "attention_head_dim": 8}, []),
        ({"num_class_embeds": 10, "attention_head_dim": None, "block_out_channels": (8, 8)}, []),
        ({"num_class_embeds": 11, "dropout": 0.1}, ["--null-class"]),
    ],
)
def test_unet(cache, tmp_path, options, words):
    model = randomised(UNet2DModel(**SMALL_UNET | options))
    gen = converted(model, tmp_path, *words)
    config, (x, t, label) = gen.config.model, inputs(3)
    num_classes = 11 if "num_class_embeds" in options else 0
    network = unet.make_unet(config.network, gen.model.images, num_classes)
    ours = jax.jit(network.apply)({"params": gen.params["unet"]}, x, t, label if num_classes else None, None)
    theirs = {"class_labels": torch.from_numpy(label)} if num_classes else {}
    assert_equal(ours, model(nchw(x), torch.from_numpy(t), **theirs).sample)


@pytest.mark.parametrize("attention", [True, False])
def test_autoencoder(cache, tmp_path, attention):
    model = randomised(AutoencoderKL(**SMALL_KL, mid_block_add_attention=attention), 0.05)
    gen = converted(model, tmp_path)
    x = jax.random.uniform(jax.random.key(0), (B, 16, 16, 3), minval=-1.0)
    network = gen.config.model.network
    encoder, decoder = first_stage.Encoder(network, 8), first_stage.Decoder(network, 3)
    moments = jax.jit(encoder.apply)({"params": gen.params["encoder"]}, x)
    posterior = model.encode(nchw(x)).latent_dist
    assert_equal(moments[..., :4], posterior.mean)
    assert_equal(moments[..., 4:], posterior.logvar)
    z = jax.random.normal(jax.random.key(1), (B, 8, 8, 4))
    assert_equal(jax.jit(decoder.apply)({"params": gen.params["decoder"]}, z), model.decode(nchw(z)).sample)


def test_attention_in_the_levels_of_a_first_stage():
    """VQGAN's networks, which diffusers has as `VQModel`: each block of the lowest level is followed by attention."""
    network = first_stage.Config((8, 16), blocks=1, latent_channels=4, groups=4, attention_resolutions=(8,))
    kinds = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    model = randomised(VQModel(**kinds, **sizes, num_vq_embeddings=5), 0.05)
    layers = [*autoencoder_names.all_layers(network)]
    for role, place, count in (("encoder", "encoder.down_blocks.1", 1), ("decoder", "decoder.up_blocks.0", 2)):
        for i in range(count):
            layers += attention(f"{role}/level1_attention{i}", f"{place}.attentions.{i}")
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items() if "quantize" not in name}
    used = [one for one in layers if f"{one.names[0]}.weight" in tensors]
    assert {name for one in used for name in one.names} == {name.rpartition(".")[0] for name in tensors}
    params = to_params(used, tensors)
    x = jax.random.uniform(jax.random.key(0), (B, 16, 16, 3), minval=-1.0)
    z = jax.jit(first_stage.Encoder(network, 4).apply)({"params": params["encoder"]}, x)
    assert_equal(z, model.encode(nchw(x)).latents)
    x_hat = jax.jit(first_stage.Decoder(network, 3).apply)({"params": params["decoder"]}, z)
    assert_equal(x_hat, model.decode(nchw(z), force_not_quantize=True).sample)


# The shapes of published configurations.

KL_F8 = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 256,
    "act_fn": "silu",
    "norm_num_groups": 32,
}
DDPM_CIFAR10 = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
DDPM_256 = DDPM_CIFAR10 | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    "sample_size": 256,
}
DIT_XL = {
    "_class_name": "Transformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "upcast_attention": False,
    "use_linear_projection": False,
}
PUBLISHED = {  # and the number of their parameters, in millions
    "DiT-XL/2 256": (DiTTransformer2DModel, DIT_XL | {"sample_size": 32}, 749.8),
    "DiT-XL/2 512": (DiTTransformer2DModel, DIT_XL | {"sample_size": 64}, 749.8),
    "KL-f8": (AutoencoderKL, KL_F8, 83.7),
    "ddpm-cifar10-32": (UNet2DModel, DDPM_CIFAR10, 35.7),
    "ddpm-celebahq-256": (UNet2DModel, DDPM_256, 113.7),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_same_tensors(name, tmp_path, monkeypatch):
    """Of a folder with the published config.json, all tensors are asked for, each in its shape, and no other."""
    cls, document, millions = PUBLISHED[name]
    with torch.device("meta"):
        fields = {field: value for field, value in document.items() if field in cls._get_init_keys(cls)}
        theirs = {name: tuple(tensor.shape) for name, tensor in cls(**fields).state_dict().items()}
    assert round(sum(np.prod(shape) for shape in theirs.values()) / 1e6, 1) == millions
    asked = {}

    class Asked(Exception):
        pass

    def read_tensors(path, wanted):
        asked.update(wanted)
        raise Asked

    monkeypatch.setattr(reading.files, "read_tensors", read_tensors)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": cls.__name__} | document))
    (tmp_path / reading.files.WEIGHTS).write_bytes(b"")
    with pytest.raises(Asked):
        command([str(tmp_path), str(tmp_path / "run")])
    assert asked == theirs


# Whole pipelines.


@pytest.fixture(scope="module")
def pipeline(cache, tmp_path_factory):
    """A pipeline with random weights, its folder, and the converted run."""
    sizes = {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}
    transformer = randomised(DiTTransformer2DModel(**SMALL_DIT, **sizes))
    vae = randomised(AutoencoderKL(**SMALL_KL, scaling_factor=0.7), 0.02)
    pipe = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder / "pipeline")
    assert command([str(folder / "pipeline"), str(folder / "run")]) == 0
    return pipe, folder, jgen.load(folder / "run")


def drawn(pipe, monkeypatch, keys, shape, labels, **options):
    """uint8 images of a DiTPipeline that begins with the noise of jgen's samplers."""
    noise = nchw(rng.normal(rng.split(keys, 2)[0], shape))
    module = diffusers.pipelines.dit.pipeline_dit
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise.reshape(shape))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(class_labels=labels, output_type="np", **options).images
    return np.round(255 * images).astype(int)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_pipeline_samples_the_same(pipeline, monkeypatch, scale):
    pipe, _, gen = pipeline
    key, labels = jax.random.key(5), [3, 999, 0, 3]
    ours = gen.sample(key, 4, label=np.array(labels), steps=5, guidance_scale=scale).astype(int)
    keys = rng.image_keys(key, jnp.arange(4))
    theirs = drawn(pipe, monkeypatch, keys, (8, 8, 4), labels, num_inference_steps=5, guidance_scale=scale)
    assert ours.shape == (4, 16, 16, 3) and ours.std() > 10 and np.abs(ours[0] - ours[3]).max() > 10
    assert np.abs(ours - theirs).max() <= 1


def test_a_pipeline_comes_back(pipeline, monkeypatch):
    """What is written of the converted run, diffusers loads, and samples the same images of."""
    pipe, folder, _ = pipeline
    assert command([str(folder / "run"), str(folder / "back"), "--to-diffusers"]) == 0
    back = DiTPipeline.from_pretrained(folder / "back")
    for part in ("transformer", "vae"):
        before, after = (getattr(p, part).state_dict() for p in (pipe, back))
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    keys, labels = rng.image_keys(jax.random.key(5), jnp.arange(4)), [3, 999, 0, 3]
    one, other = (
        drawn(p, monkeypatch, keys, (8, 8, 4), labels, num_inference_steps=5, guidance_scale=1.0) for p in (pipe, back)
    )
    assert np.abs(one - other).max() <= 1


def test_what_was_trained_here_runs_there(cache, tmp_path):
    """A U-Net that counts steps from 1, as DDPM's of jgen, is written as one that counts from 0."""
    network = unet.Config(channels=(8, 16), blocks=1, attention=(8,), head_dim=8, groups=4, dropout=0.0)
    data = DataSpec(ImageSpec(8, 8, 3, 256))
    config = ddpm.Config(network=network, class_conditional=False, prediction="v", schedule="cosine")
    source = np.random.default_rng(0)
    shapes = reading.template(ddpm.make(config, data))
    params = jax.tree.map(lambda leaf: source.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    reading.write_run(tmp_path / "run", reading.Model(config, data, params, {}, {}), Arguments(), None, {}, tmp_path)
    assert command([str(tmp_path / "run"), str(tmp_path / "folder"), "--to-diffusers"]) == 0
    pipe = DDIMPipeline.from_pretrained(tmp_path / "folder")
    x, t, _ = inputs(3)
    ours = jax.jit(unet.make_unet(network, data.image, 0).apply)({"params": params["unet"]}, x, t + 1, None, None)
    assert_equal(ours, pipe.unet(nchw(x), torch.from_numpy(t)).sample)
    assert (pipe.scheduler.config.prediction_type, pipe.scheduler.config.beta_schedule) == (
        "v_prediction",
        "squaredcos_cap_v2",
    )


def test_a_first_stage_trained_here_runs_there(cache, tmp_path):
    network = first_stage.Config(channels=(8, 16), blocks=1, latent_channels=4, attention=False, groups=4)
    data, source = DataSpec(ImageSpec(16, 16, 3, 256)), np.random.default_rng(0)
    config = autoencoder_kl.Config(network, adversary=patch_adversary.Config(weight=0.5, channels=(8,)))
    made = jax.jit(autoencoder_kl.make(config, data).init, static_argnums=2)
    params, extra = made(jax.random.key(0), {"image": np.zeros((1, 16, 16, 3), np.uint8)}, None)
    params = jax.tree.map(lambda leaf: source.normal(0, 0.2, leaf.shape).astype(np.float32), params)
    reading.write_run(tmp_path / "run", reading.Model(config, data, params, extra, {}), Arguments(), None, {}, tmp_path)
    assert command([str(tmp_path / "run"), str(tmp_path / "folder"), "--to-diffusers"]) == 0
    vae = AutoencoderKL.from_pretrained(tmp_path / "folder")
    z = jax.random.normal(jax.random.key(1), (B, 8, 8, 4))
    ours = jax.jit(first_stage.Decoder(network, 3).apply)({"params": params["decoder"]}, z)
    assert_equal(ours, vae.decode(nchw(z)).sample)


def test_the_scheduler_of_ddpm_is_ancestral_sampling(cache, tmp_path):
    UNet2DModel(**SMALL_UNET).save_pretrained(tmp_path / "model")
    DDPMScheduler(100, variance_type="fixed_large", clip_sample=False).save_pretrained(tmp_path / "model")
    assert command([str(tmp_path / "model"), str(tmp_path / "run")]) == 0
    config = jgen.load(tmp_path / "run").config.model
    sampling = config.sampling
    assert config.num_timesteps == 100 and not sampling.clip
    assert (sampling.sampler, sampling.steps, sampling.variance) == ("ancestral", 100, "beta")
