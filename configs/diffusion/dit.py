"""DiT (Peebles & Xie 2023, arXiv 2212.09748) on several data sets."""

from dataclasses import replace

from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.diffusion import ddpm, flow_matching
from jgen.models.diffusion.dit import Config
from jgen.nn import dit
from jgen.samplers.diffusion import Sampling
from jgen.train.config import Optimiser, tiny_training
from jgen.train.presets import CIFAR10, STANDARD, accelerator_training, choose, cosine, digits_training, mnist_training

VARIANTS = STANDARD | {
    "cifar10": "32x32 CIFAR-10 by class, DiT-B/2; for an accelerator",
}
FACTS = Facts(free_form_jacobian=True, published="ImageNet 256: FID 2.27 (DiT-XL/2, guidance 1.5)")

HEUN = Sampling(sampler="heun", steps=25, guidance_scale=1.5)


def get_config(variant: str) -> Experiment:
    return choose(variant, digits=digits, mnist=mnist, tiny=tiny, cifar10=cifar10)


def digits() -> Experiment:
    # With patches of 2x2 pixels validation ends at 0.445 instead of 0.403.
    network = dit.Config(patch=1, features=48, layers=4, heads=3)
    model = Config(flow_matching.Config(network=network, sampling=HEUN))
    return Experiment(model, Data(name="digits"), digits_training(2000, cosine(2e-3, warmup_steps=100)))


def tiny(digits: Experiment) -> Experiment:
    network = dit.Config(patch=4, features=8, layers=2, heads=2, mlp_ratio=2.0, dropout=0.1)
    sampling = Sampling(steps=4)
    objective = ddpm.Config(network=network, num_timesteps=10, sampling=sampling)
    return replace(digits, model=Config(objective), train=tiny_training(digits.train))


def mnist(name: str) -> Experiment:
    network = dit.Config(patch=2, features=96, layers=6, heads=4)
    model = Config(flow_matching.Config(network=network, sampling=HEUN))
    return Experiment(model, Data(name=name), mnist_training(10_000, cosine(5e-4, warmup_steps=200, clip_norm=1.0)))


def cifar10() -> Experiment:
    # The paper's optimiser: AdamW at 1e-4 without decay, EMA 0.9999, flips; batches of 256.
    model = Config(ddpm.Config(network=dit.base(patch=2), sampling=Sampling(sampler="ancestral", steps=250)))
    training = accelerator_training(400_000, Optimiser(learning_rate=1e-4), batch_size=256, keep_every=50_000)
    return Experiment(model, CIFAR10, training)
