"""The outcomes of `jgen.evaluate` as a table for the console: a row a run, and below it what the numbers are of."""

from __future__ import annotations

from typing import Any

from jgen.core.model import LIKELIHOODS


def head(documents: list[dict[str, Any]]) -> list[str]:
    """The columns' names: only in the features of the published network are distances FID and KID."""
    published = any(document["quality"]["network"] == "FID" for document in documents if document.get("quality"))
    names = ["run", "system", "data", "step", "bits/dim", "log p(x), nats", "likelihood"]
    names += ["FID", "KID"] if published else ["FD", "kernel distance"]
    return [*names, "precision", "recall", "class accuracy"]


def row(document: dict[str, Any]) -> list[str]:
    """The cells of one outcome; "-" for what it has not."""
    cells = [document["run"], document["system"], document["data"], str(document.get("step", "-"))]
    if found := document["likelihood"]:
        nats, num = found["nats"], found["protocol"]["num"]
        error = "" if nats["standard_error"] is None else f" ± {nats['standard_error']:.3f}"
        cells += [f"{found['bits_per_dim']['mean']:.4f}", f"{nats['mean']:.3f}{error}"]
        cells += [f"{LIKELIHOODS[found['kind']]}, N {num}"]
    else:
        cells += ["-"] * 3
    if found := document.get("quality"):
        distance, kernel = found["frechet_distance"], found["kernel_distance"]
        cells += [f"{distance['value']:.3f} ({distance['low']:.3f} to {distance['high']:.3f})"]
        cells += [f"{kernel['value']:.5f} ± {kernel['standard_error']:.5f}"]
        cells += [f"{found['precision']['value']:.3f}", f"{found['recall']['value']:.3f}"]
    else:
        cells += ["-"] * 4
    labels = document.get("labels")
    return [*cells, f"{labels['accuracy']:.4f} of {labels['num']}" if labels else "-"]


def protocol(document: dict[str, Any]) -> str:
    """What the numbers of one outcome are of, and what they were measured with."""
    said = [f"data {document['data']}, hash {document['data_fingerprint'][:12]}"]
    if found := document["likelihood"]:
        names = {"samples": "K"}  # of importance weights, or of draws of the dequantisation noise
        values = ", ".join(f"{names.get(name, name)} {value}" for name, value in found["protocol"].items())
        said.append(f"likelihood: {values}")
    if found := document.get("quality"):
        network, real = f"{found['network']}, weights {found['network_hash']}", found["real"]
        said.append(f"distances: {network}, {found['num']} samples to {real['num']} {real['split']} images, intervals")
        said[-1] += f" by bootstrap of the samples; precision and recall of {found['neighbours_num']} of each"
        if real := found.get("reference"):
            said.append(
                f"{real['num']} {real['split']} images instead: distance {real['frechet_distance']:.3f}, kernel"
            )
            said[-1] += f" distance {real['kernel_distance']:.5f}, precision {real['precision']:.3f}, recall"
            said[-1] += f" {real['recall']:.3f}"
    if found := document.get("reconstruction"):
        distance = found["quality"]["frechet_distance"]["value"]
        said.append(f"reconstructions of {found['num']} {found['split']} images: mean squared error {found['mse']:.5f}")
        said[-1] += f", r{found['quality']['network']} {distance:.3f}"
        if "codes" in found:
            said[-1] += f", {found['codes_used']} of {found['codes']} codes used, perplexity {found['perplexity']:.1f}"
    if found := document.get("labels"):
        said.append(f"classes: classifier {found['classifier']}, {found['classifier_test_accuracy']:.4f} right on real")
    return "; ".join(said)


def more(documents: list[dict[str, Any]]) -> list[list[str]]:
    """The other scores of samples, a row a run that has them under their names; nothing where none has."""
    rows = []
    for document in documents:
        if found := document.get("quality"):
            score, labels = found.get("inception_score") or found["classifier_score"], document.get("labels")
            cells = [
                f"{found['spatial_frechet_distance']['value']:.3f}",
                f"{score['value']:.3f} ± {score['spread']:.3f}",
            ]
            cells += [f"{found[name]['value']:.3f}" for name in ("density", "coverage")]
            cells += [f"{100 * found['memorisation']['value']:.1f} %", f"{labels['balance']:.4f}" if labels else "-"]
            rows.append([document["run"], *cells])
    published = any("inception_score" in document["quality"] for document in documents if document.get("quality"))
    names = ["sFID", "inception score"] if published else ["spatial FD", "classifier's score"]
    return [["run", *names, "density", "coverage", "memorisation", "class balance"], *rows] if rows else []


def aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in rows]


def table(documents: list[dict[str, Any]]) -> str:
    """Aligned rows under their names, then a line for each protocol, which names its runs where there are several."""
    lines = aligned([head(documents), *(row(document) for document in documents)]) + aligned(more(documents))
    of: dict[str, list[str]] = {}
    for document in documents:
        of.setdefault(protocol(document), []).append(document["run"])
    return "\n".join([*lines, *(said if len(of) == 1 else f"{', '.join(runs)}: {said}" for said, runs in of.items())])
