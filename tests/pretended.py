"""A comparison whose programs are pretended: what they leave, without their hours."""

import json
from pathlib import Path

import numpy as np

from jgen.cli import import_config
from jgen.compare.config import ROOT
from jgen.compare.processes import Failed
from jgen.compare.systems import System, is_guided, load_training, model_of
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.pictures import write_png

COST = {
    "batch_size": 10,
    "parameters": 1234,
    "flops_per_image": 2e6,
    "compile_seconds": 3.0,
    "step_seconds": 0.5,
    "images_per_second": 20.0,
    "first_sample_seconds": 1.5,
    "samples_per_second": 50.0,
    "peak_mib": 512.0,
    "likelihood": "lower_bound",
    "levels": 16,
    "exact_density": False,
}


ENVIRONMENT = {"processor": "2 x CPU", "devices": ["cpu:cpu"], "versions": {"jax": "0.12"}, "python": "3.12"}
ENVIRONMENT |= {"platform": "L", "commit": "0123456789abcdef+"}
PROTOCOL = {"split": "test", "num": 200, "binarise": "none", "levels": 16, "dequantisation": "uniform", "samples": 5}
STEPS = 240


def evaluation(distance, bits=None, data="fedcba9876543210"):
    return {
        "trained": {"steps": STEPS, "minutes": 1.0},
        "step": 180,
        "data_fingerprint": data,
        "environment": ENVIRONMENT,
        "training": {**ENVIRONMENT, "versions": {"jax": "0.11"}},
        "sampling": {"options": {"steps": 50, "sampler": "ddim", "guidance_scale": 2.0}},
        "likelihood": {"bits_per_dim": {"mean": bits, "standard_error": 0.01}, "protocol": PROTOCOL} if bits else None,
        "labels": {"accuracy": 0.9, "low": 0.85, "high": 0.95, "balance": 0.99},
        "quality": {
            "network": "FD-digits-0",
            "num": 100,
            "real": {"split": "test", "num": 90},
            "frechet_distance": {"value": distance, "low": distance - 0.5, "high": distance + 0.5},
            "memorisation": {"value": 0.6},
            "kernel_distance": {"value": distance / 10, "standard_error": 0.2},
            "spatial_frechet_distance": {"value": 7.0},
            "classifier_score": {"value": 8.0},
            "inception_score": {"value": 9.0},
            "density": {"value": 0.7},
            "coverage": {"value": 0.8},
            "reference": {"split": "train", "num": 100, "frechet_distance": 0.25, "recall": 0.9},
            "precision": {"value": 0.5, "low": 0.4, "high": 0.6},
            "recall": {"value": 0.25},
        },
    }


def pretend(distances, data="fedcba9876543210"):
    """In place of the programs: files such as they leave; a string is an error.

    Args:
      distances: {system: its distance with each seed}; of the first the likelihood is evaluated too.
      data: the hash of the data that evaluations state.
    """

    def run(words, log):
        place = next(i for i, word in enumerate(words) if word in ("--workdir", "--out", "jgen.evaluate"))
        path = Path(words[place + 1])
        path.parent.mkdir(parents=True, exist_ok=True)
        if "jgen.compare.measure" in words:
            measure(words, path)
        elif words[0].endswith("train.py"):
            train(path)
        elif "jgen.evaluate" in words:
            distance = distances[path.parent.name][int(path.name[-1])]
            if isinstance(distance, str):
                raise Failed(distance)
            document = evaluation(distance, 2.0 if path.parent.name == next(iter(distances)) else None, data)
            (path.parent / f"{path.name}.evaluation.json").write_text(json.dumps(document))
            write_png(Path(words[words.index("--grid") + 1]), np.zeros((20, 20, 1), np.uint8))

    return run


def measure(words, path):
    """What `jgen.compare.measure` leaves: images of 16x16 do not fit."""
    figures = {"images_per_second": 20.0, "samples_per_second": 50.0, "flops_per_image": 1e6}
    sizes = words[words.index("--sizes") + 1 :]
    document = {"config": words[2], "environment": ENVIRONMENT, "own": COST}
    document["sizes"] = {size: {"unfit": "too large"} if size == "16" else figures for size in sizes}
    path.write_text(json.dumps(document))


def train(path):
    """What training leaves: a validation score of the kind by which the system's checkpoints are told apart."""
    best = BEST.get(path.parent.name)
    path.mkdir(parents=True, exist_ok=True)
    line = {"step": 180, "split": "validation", best[0] if best else "other": -1.0}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def generators():
    """The systems that a comparison of digits has, found without loading the data."""
    systems = []
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        if "digits" in import_config(path).VARIANTS:
            systems.append(System(path.stem, load_training(f"{path.relative_to(ROOT)}:digits")))
    return [system for system in systems if system.training.facts.compared]


DIGITS = DataSpec(ImageSpec(8, 8, 1, 17), {"label": ArraySpec((), "int32", 10)})
GENERATORS = generators()
BEST = {system.name: model_of(system.training, DIGITS).best for system in GENERATORS}
# A system that stands alone and has a best checkpoint, one without a best checkpoint, and one on a frozen model that
# generates nothing by itself; none that is guided, whose samples are scored twice.
ALONE = next(s for s in GENERATORS if BEST[s.name] and not s.training.frozen)
NO_BEST = next(s for s in GENERATORS if BEST[s.name] is None)
PARTS = {s.name: [part for part in s.training.frozen.values() if not part.facts.compared] for s in GENERATORS}
STAGED = next(s for s in GENERATORS if PARTS[s.name] and not is_guided(s.training))
DISTANCES = {ALONE.name: [4.0, 6.0], NO_BEST.name: [1.0, "the disk is full"], STAGED.name: [9.0, 9.5]}
ARGUMENTS = ["--data", "digits", "--minutes", "2", "--seeds", "2"]
ARGUMENTS += ["--systems", ",".join(DISTANCES), "--sizes", "8", "16"]
