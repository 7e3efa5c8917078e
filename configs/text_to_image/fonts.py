"""Few-shot fonts (He et al. 2022, arXiv 2212.05895): letters drawn from a few others of the same font.

It needs many fonts; docs/fonts.md names packages of fonts. For your own fonts, --data.name fonts:FOLDER. To make a font
from thirty pictures: python -m jgen.fonts RUN --samples FOLDER --out my.ttf
"""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion import ddpm, edm
from jgen.models.text_to_image.fonts import Config
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import accelerator_training, cosine, digits_training

VARIANTS = {
    "fonts": "32x32 letters of the machine's fonts; some 20 minutes on 2 CPU cores",
    "fonts64": "64x64 letters of them, by a U-Net; for an accelerator",
    "tiny": "16x16 letters, seconds to train; for tests",
}
FACTS = Facts(compared=False)

FAST = Sampling(sampler="dpmpp_2m", spacing="karras", low=0.005, steps=12)


def get_config(variant: str) -> Experiment:
    return {"fonts": fonts, "fonts64": fonts64, "tiny": tiny}[variant]()


def fonts() -> Experiment:
    network = unet.Config(channels=(24, 48, 96), blocks=1, attention=(8,), head_dim=32, groups=8, dropout=0.0)
    # Ink covers 7 % of a picture. The letter is given, so only the shape of its strokes has to be decided.
    objective = edm.Config(network=network, sampling=FAST, sigma_data=0.45, sigma_max=40.0, p_mean=-0.5, p_std=1.3)
    model = Config(objective, style_channels=(24, 48, 96), style_width=96)
    train = digits_training(1000, cosine(1.5e-3, warmup_steps=100, clip_norm=1.0), batch_size=32, validation_images=512)
    return Experiment(model, Data(name="fonts", style=30), train)


def fonts64() -> Experiment:
    network = unet.Config(channels=(64, 128, 256), blocks=2, attention=(32, 16), dropout=0.0)
    objective = edm.Config(network=network, sampling=replace(FAST, steps=24), sigma_data=0.45)
    model = Config(objective, style_channels=(32, 64, 128, 256), style_width=256)
    train = accelerator_training(200_000, Optimiser(learning_rate=2e-4), batch_size=128)
    return Experiment(model, Data(name="fonts", size=64, style=30), train)


def tiny() -> Experiment:
    base = fonts()
    network = replace(unet.TINY, attention=(8,))
    objective = ddpm.Config(network=network, num_timesteps=10, sampling=Sampling(steps=3, guidance_scale=2.0))
    model = Config(objective, style_channels=(8, 8), style_width=8, style_groups=4)
    return replace(base, model=model, data=Data(name="fonts", size=16, style=4), train=tiny_training(base.train))
