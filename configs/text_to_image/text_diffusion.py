"""Diffusion given texts (Nichol et al. 2022, arXiv 2112.10741; Rombach et al. 2022, arXiv 2112.10752).

shapes_latent depends on two runs: python train.py configs/text_to_image/clip.py:shapes and python train.py
configs/vae/autoencoder_kl.py:shapes. Captioned folders of your own: --data.name folder:PATH.
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion import ddpm, edm
from jgen.models.text_to_image.text_diffusion import Config
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import tiny_training
from jgen.train.presets import SHAPES, TINY_SHAPES, accelerator_training, cosine, digits_training

VARIANTS = {
    "shapes": "32x32 rendered shapes with captions; some 70 minutes of CPU time",
    "shapes_latent": "8x8 latents of them, on a frozen CLIP and a frozen autoencoder: Stable Diffusion's shape",
    "emoji": "64x64 pictures of Noto Color Emoji by their names; for an accelerator",
    "tiny": "the same, seconds to train; for tests",
}
FACTS = Facts(compared=False)
FROZEN = {"text_encoder": "configs/text_to_image/clip.py:shapes", "autoencoder": "configs/vae/autoencoder_kl.py:shapes"}
EDM = edm.Config(class_conditional=False, sampling=Sampling("heun", 18, "karras", low=0.005, guidance_scale=2.0))


def get_config(variant: str) -> Experiment:
    return {"shapes": shapes, "shapes_latent": shapes_latent, "emoji": emoji, "tiny": tiny}[variant]()


def shapes() -> Experiment:
    # Convolutions at full resolution draw an object equally well at every position. A transformer with 4x4 patches has
    # to learn it for every offset within a patch: after as many steps it drew blobs.
    network = unet.Config(channels=(16, 48, 96), blocks=1, attention=(8,), head_dim=32, groups=8, dropout=0.0)
    # Most of a picture is grey; where objects are is decided at higher noise levels than their edges.
    objective = replace(EDM, network=network, sigma_data=0.25, sigma_max=40.0, p_mean=-0.5, p_std=1.3)
    train = digits_training(4500, cosine(1.5e-3, warmup_steps=100, clip_norm=1.0), batch_size=32, validation_images=256)
    return Experiment(Config(objective, text_width=96, text_heads=4, text_layers=2), SHAPES, train)


def shapes_latent() -> Experiment:
    network = unet.Config(channels=(96, 128), blocks=1, attention=(8, 4), head_dim=32, groups=8, dropout=0.0)
    objective = replace(EDM, network=network, sampling=replace(EDM.sampling, clip=False), sigma_data=1.0)
    frozen = {"text_encoder": "runs/clip-shapes", "autoencoder": "runs/autoencoder_kl-shapes"}
    return replace(shapes(), model=Config(objective), frozen=frozen)


def emoji() -> Experiment:
    network = unet.Config(channels=(128, 256, 256, 256), blocks=2, attention=(16, 8), dropout=0.1)
    data = Data(name="emoji", tokenizer="bpe", vocabulary=1024, text_length=20)  # the longest name has 20 tokens
    train = accelerator_training(50_000, cosine(2e-4, warmup_steps=1000, clip_norm=1.0), batch_size=128)
    return Experiment(Config(replace(EDM, network=network, sigma_data=0.7), text_layers=6), data, train)


def tiny() -> Experiment:
    base = shapes()
    chain = ddpm.Config(unet.TINY, False, num_timesteps=10, sampling=Sampling(steps=3, guidance_scale=2.0))
    model = Config(chain, text_width=16, text_heads=2, text_layers=1)
    return replace(base, model=model, data=TINY_SHAPES, train=tiny_training(base.train))
