"""Converts weights in diffusers' layout to a run, and back.

python -m jgen.convert FOLDER RUN [--data.name imagenet2012 --data.size 256] [--train.batch-size 256 ...]
python -m jgen.convert RUN FOLDER --to-diffusers

FOLDER contains config.json and diffusion_pytorch_model.safetensors of a DiTTransformer2DModel, a UNet2DModel or an
AutoencoderKL, or is the folder of a pipeline: transformer/ (with or without vae/) or unet/, with scheduler/, or Stable
Diffusion 1.x, 2.x or XL. A pipeline with a vae/ becomes two runs: RUN-vae is the autoencoder, and RUN depends on it;
--to-diffusers writes such a run as one pipeline again. To score a run or train it further, give its data (--data) and
training options (--train), then python train.py RUN. To sample, jgen.load(FOLDER) is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jgen import cli
from jgen.data.config import Config as Data
from jgen.errors import UserError, require, require_seed
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser, check_config

PROG = "python -m jgen.convert FOLDER RUN"


@dataclass(frozen=True)
class Arguments:
    """How to convert weights."""

    to_diffusers: bool = False
    """Write the weights of a run: python -m jgen.convert RUN FOLDER --to-diffusers."""
    null_class: bool = False
    """The last class of a UNet2DModel means "no class", for classifier-free guidance."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type of a text-to-image pipeline; weights stay float32."""
    data: Data = field(default_factory=lambda: Data(name=""))
    """Data of the run; without a name it is unknown."""
    train: Train = field(default_factory=lambda: Train(optimiser=Optimiser(learning_rate=1e-4)))
    """Options for further training of the run."""
    seed: int = 0
    """Seed of training."""
    step: int | Literal["best"] | None = None
    """With --to-diffusers: the checkpoint, or best; default: the newest."""
    ema: bool = True
    """With --to-diffusers: write the moving average (EMA) of the weights."""


def command(args: list[str]) -> int:
    if len(args) < 2 or args[0].startswith("-") or args[1].startswith("-"):
        if "--help" in args or "-h" in args:
            cli.parse(Arguments, ["--help"], PROG, __doc__ or "")
        raise UserError(f"which weights, and where to? {PROG}, or python -m jgen.convert RUN FOLDER --to-diffusers")
    source, target = Path(args[0]).expanduser(), Path(args[1]).expanduser()
    a: Arguments = cli.parse(Arguments, args[2:], PROG, __doc__ or "")
    cli.set_up_process()
    if a.to_diffusers:
        from jgen.convert.writing import to_folder

        defaults = Arguments()
        for name in ("null_class", "dtype", "data", "train", "seed"):
            unread = getattr(a, name) != getattr(defaults, name)
            require(not unread, f"--{name.replace('_', '-')} with --to-diffusers: nothing would read it")
        to_folder(str(source), target, a.step, a.ema)
        print(f"{source} in diffusers' layout: {target}")
        return 0
    from jgen.convert.loading import to_run
    from jgen.core import parallel

    require(a.step is None and a.ema, "step and ema are of --to-diffusers only")
    check_config(a.train, parallel.device_count())
    require_seed(a.seed)
    runs = to_run(source, target, a)
    print(f"{source} as {' and '.join(map(str, runs))}")
    return 0


if __name__ == "__main__":
    cli.main(command)
