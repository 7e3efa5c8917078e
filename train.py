"""Train an image generator: python train.py CONFIG[:VARIANT] --workdir RUN [--option value ...]

Without arguments, it trains a class-conditional diffusion model (VDM) on 8x8 digits. Running the same command again
resumes the run; so does naming the run instead of CONFIG: python train.py RUN --train.steps N.
--model options depend on CONFIG: `python train.py CONFIG --help`. `--list` shows the configurations and their variants
(the first is the default); `--list SYSTEM`, such as `--list dcgan`, describes the variants of one system.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from jgen import cli
from jgen.distributed import Distributed, leaving_at_once
from jgen.experiment import Experiment

ROOT = Path(__file__).resolve().parent


def command(args: list[str]) -> int:
    if "--list" in args:
        print(cli.list_configs(ROOT, *args[args.index("--list") + 1 :][:1]))
        return 0
    name = args.pop(0) if args and not args[0].startswith("-") else cli.DEFAULT
    experiment, workdir = cli.load_config_or_run(name, ROOT)
    parsed = cli.parse(arguments(experiment, workdir), args, "train.py CONFIG[:VARIANT]", __doc__)
    return train(parsed.experiment, Path(parsed.workdir).expanduser(), parsed.distributed)


def arguments(experiment: Experiment, workdir: str) -> type:
    """The command line's options: those of the experiment, --workdir and --distributed."""
    import tyro

    text = "Run directory; running again with the same one resumes."
    fields = [
        ("workdir", Annotated[str, tyro.conf.arg(help=text)], dataclasses.field(default=workdir)),
        ("distributed", Distributed, dataclasses.field(default=Distributed())),
        ("experiment", Annotated[Experiment, tyro.conf.arg(name="")], dataclasses.field(default=experiment)),
    ]
    return dataclasses.make_dataclass("Arguments", fields, frozen=True)


def train(experiment: Experiment, workdir: Path, distributed: Distributed | None = None) -> int:
    cli.set_up_process(distributed)
    import jgen
    from jgen.core import parallel
    from jgen.train.loop import Interrupted

    steps = experiment.train.steps
    grid = workdir / "samples" / f"step_{steps:08d}.png"
    again = f"python sample.py {workdir} --num 64 --out samples.png"
    try:
        with leaving_at_once(Interrupted):
            outcome = jgen.fit(experiment, workdir)
            parallel.wait_for_all("trained")  # JAX does not let a process end minutes before the others
    except Interrupted as stop:
        print(f"stopped at step {stop.step} of {steps}; saved. To go on, run the same command again.", file=sys.stderr)
        return stop.code
    if outcome == "finished":
        then = f", or sample from it:\n  {again}" if grid.is_file() else ""
        print(f"{workdir} is finished at step {steps}: train on with --train.steps N{then}")
    elif grid.is_file():
        print(f"samples: {grid}\nnext:    {again}")
    else:
        print(f"{workdir} is trained to step {steps}")
    return 0


if __name__ == "__main__":
    cli.main(command)
