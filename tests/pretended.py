"""A comparison whose programs are pretended: what they leave, without their hours."""

import json
from pathlib import Path

import numpy as np

from jgen.compare.processes import Failed
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
    "free_form_jacobian": True,
}


WHERE = {"processor": "2 x CPU", "devices": ["cpu:cpu"], "versions": {"jax": "0.12"}, "python": "3.12", "platform": "L"}
WHERE |= {"commit": "0123456789abcdef+"}
PROTOCOL = {"split": "test", "num": 200, "binarise": "none", "levels": 16, "dequantisation": "uniform", "samples": 5}


def evaluation(distance, bits=None):
    return {
        "trained": {"steps": 240, "minutes": 1.0},
        "step": 180,
        "data_fingerprint": "fedcba9876543210",
        "environment": WHERE,
        "training": {**WHERE, "versions": {"jax": "0.11"}},
        "sampling": {"options": {"steps": 50, "sampler": "ddim", "guidance_scale": 2.0, "eta": 0.0}},
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


def pretend(distances):
    """In place of the programs: files such as they leave; a string is an error."""

    def run(words, log):
        where = next(words[i + 1] for i, word in enumerate(words) if word in ("--workdir", "--out", "jgen.evaluate"))
        path = Path(where)
        system = path.parent.name
        if "jgen.compare.measure" in words:
            at = {"images_per_second": 20.0, "samples_per_second": 50.0, "flops_per_image": 1e6}
            sizes = {
                size: {"unfit": "too large"} if size == "16" else at for size in words[words.index("--sizes") + 1 :]
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            document = {"config": words[2], "first_stage": "x" if system == "vq_prior" else "", "environment": WHERE}
            path.write_text(json.dumps({**document, "own": COST, "sizes": sizes}))
        elif words[0].endswith("train.py"):
            name = "accuracy_real" if system == "dcgan" else "elbo"
            path.mkdir(parents=True, exist_ok=True)
            (path / "metrics.jsonl").write_text(json.dumps({"step": 180, "split": "validation", name: -1.0}) + "\n")
        elif "jgen.evaluate" in words:
            found = distances[system][int(path.name[-1])]
            if isinstance(found, str):
                raise Failed(found)
            path.mkdir(parents=True, exist_ok=True)
            document = evaluation(found, bits=2.0 if system == "vae" else None)
            (path.parent / f"{path.name}.evaluation.json").write_text(json.dumps(document))
            write_png(Path(words[words.index("--grid") + 1]), np.zeros((20, 20, 1), np.uint8))

    return run


ARGUMENTS = [
    "--data",
    "digits",
    "--minutes",
    "2",
    "--seeds",
    "2",
    "--systems",
    "vae,dcgan,vq_prior",
    "--sizes",
    "8",
    "16",
]
