"""The results of `jgen.evaluate` as a table for the console: a row per run, and below it the protocol."""

from __future__ import annotations

from typing import Any

from jgen.core.model import LIKELIHOODS

MOST_CLASSES = 20  # most classes named in a table


def head(documents: list[dict[str, Any]]) -> list[str]:
    """The columns' names: distances are called FID and KID only in the features of the published network."""
    published = any(document["quality"]["network"] == "FID" for document in documents if document.get("quality"))
    names = ["run", "system", "data", "step", "bits/dim", "log p(x), nats", "likelihood"]
    names += ["FID", "KID"] if published else ["FD", "kernel distance"]
    return [*names, "precision", "recall", "class accuracy"]


def row(document: dict[str, Any]) -> list[str]:
    """The cells of one result; "-" for missing scores."""
    cells = [document["run"], document["system"], document["data"], str(document.get("step", "-"))]
    if likelihood := document["likelihood"]:
        nats, num = likelihood["nats"], likelihood["protocol"]["num"]
        error = "" if nats["standard_error"] is None else f" ± {nats['standard_error']:.3f}"
        cells += [f"{likelihood['bits_per_dim']['mean']:.4f}", f"{nats['mean']:.3f}{error}"]
        cells += [f"{LIKELIHOODS[likelihood['kind']]}, N {num}"]
    else:
        cells += ["-"] * 3
    if quality := document.get("quality"):
        distance, kernel = quality["frechet_distance"], quality["kernel_distance"]
        cells += [f"{distance['value']:.3f} ({distance['low']:.3f} to {distance['high']:.3f})"]
        cells += [f"{kernel['value']:.5f} ± {kernel['standard_error']:.5f}"]
        cells += [f"{quality['precision']['value']:.3f}", f"{quality['recall']['value']:.3f}"]
    else:
        cells += ["-"] * 4
    labels = document.get("labels")
    return [*cells, f"{labels['accuracy']:.4f} of {labels['num']}" if labels else "-"]


def protocol(document: dict[str, Any]) -> str:
    """What the scores of one result were measured on, and how."""
    parts = [f"data {document['data']}, hash {document['data_fingerprint'][:12]}"]
    if likelihood := document["likelihood"]:
        names = {"samples": "K"}  # importance samples, or draws of the dequantisation noise
        values = ", ".join(f"{names.get(name, name)} {value}" for name, value in likelihood["protocol"].items())
        parts.append(f"likelihood: {values}")
    if quality := document.get("quality"):
        network, real = f"{quality['network']}, weights {quality['network_hash']}", quality["real"]
        parts.append(
            f"distances: {network}, {quality['num']} samples to {real['num']} {real['split']} images, intervals by"
            f" bootstrap of the samples; precision and recall of {quality['neighbours_num']} of each"
        )
        if reference := quality.get("reference"):
            parts.append(
                f"{reference['num']} {reference['split']} images instead: distance"
                f" {reference['frechet_distance']:.3f}, kernel distance {reference['kernel_distance']:.5f}, precision"
                f" {reference['precision']:.3f}, recall {reference['recall']:.3f}"
            )
    if made := document.get("reconstruction"):
        distance, network = made["quality"]["frechet_distance"]["value"], made["quality"]["network"]
        errors = f"mean squared error {made['mse']:.5f}, r{network} {distance:.3f}"
        parts.append(f"reconstructions of {made['num']} {made['split']} images: {errors}")
        for grid in made.get("grids", [made] if "codes" in made else []):
            parts[-1] += f", {grid['codes_used']} of {grid['codes']} codes used, perplexity {grid['perplexity']:.1f}"
    if labels := document.get("labels"):
        accuracy = labels["classifier_test_accuracy"]
        right = f"{accuracy:.4f} right on real" if accuracy is not None else "the real test images have no labels"
        parts.append(f"classes: classifier {labels['classifier']}, {right}")
        if names := labels.get("names"):
            by_class = (f"{name} {labels['by_class'][name]:.4f}" for name in names[:MOST_CLASSES])
            parts[-1] += f"; right by class: {', '.join(by_class)}{', ...' * (len(names) > MOST_CLASSES)}"
    if held_out := document.get("held_out"):
        scores, about = held_out["scores"], held_out["protocol"]
        values = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        parts.append(f"{about['num']} {about['split']} images, {about['batch_size']} at a time: {values}")
    if retrieval := document.get("retrieval"):
        for way in ("image_to_text", "text_to_image"):
            values = ", ".join(f"{100 * value:.1f} % in {k}" for k, value in retrieval[way].items())
            parts.append(f"{way} among {retrieval['num']}: {values}")
    if zero_shot := document.get("zero_shot"):
        right = f"{100 * zero_shot['accuracy']['mean']:.1f} % right"
        parts.append(f"zero-shot: {right} of {zero_shot['num']} images, {zero_shot['classes']} classes")
    for field, scores in document.get("alignment", {}).items():
        shares = (f"{name} {value:.4f}" for name, value in scores.items() if name != "num")
        parts.append(f"{field} against the images of {scores['num']} samples: {', '.join(shares)}")
    return "; ".join(parts)


def more(documents: list[dict[str, Any]]) -> list[list[str]]:
    """Further scores of samples: a header and a row per run that has them; [] if none has."""
    rows = []
    for document in documents:
        if quality := document.get("quality"):
            score, labels = quality.get("inception_score") or quality["classifier_score"], document.get("labels")
            memorised = quality.get("memorisation")
            cells = [
                f"{quality['spatial_frechet_distance']['value']:.3f}",
                f"{score['value']:.3f} ± {score['spread']:.3f}",
                *(f"{quality[name]['value']:.3f}" for name in ("density", "coverage")),
                f"{100 * memorised['value']:.1f} %" if memorised else "-",
                f"{labels['balance']:.4f}" if labels else "-",
            ]
            rows.append([document["run"], *cells])
    published = any("inception_score" in document["quality"] for document in documents if document.get("quality"))
    names = ["sFID", "inception score"] if published else ["spatial FD", "classifier's score"]
    return [["run", *names, "density", "coverage", "memorisation", "class balance"], *rows] if rows else []


def aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in rows]


def table(documents: list[dict[str, Any]]) -> str:
    """An aligned table, then a line for each protocol, which names its runs if there are several."""
    lines = aligned([head(documents), *(row(document) for document in documents)]) + aligned(more(documents))
    runs: dict[str, list[str]] = {}  # {protocol: runs}
    for document in documents:
        runs.setdefault(protocol(document), []).append(document["run"])
    protocols = [text if len(runs) == 1 else f"{', '.join(names)}: {text}" for text, names in runs.items()]
    return "\n".join([*lines, *protocols])
