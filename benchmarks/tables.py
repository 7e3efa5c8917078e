"""Writes the tables of README.md and docs/ from results/: python benchmarks/tables.py [--check]

Every number in a table comes from a JSON file that also has the command, commit and machine.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jgen.cli import import_config  # noqa: E402
from jgen.compare import rows, tables  # noqa: E402
from jgen.compare.facts import legend  # noqa: E402
from jgen.compare.systems import Training, load_training, sampling_defaults  # noqa: E402
from jgen.core.model import LIKELIHOODS  # noqa: E402
from jgen.studies import (  # noqa: E402
    anomaly,
    caption_words,
    classification,
    divergences,
    fonts,
    free_form_jacobian,
    gan_gradients,
    inpainting,
    mode_collapse,
    optimal_discriminator,
    receptive_field,
    sampling_noise,
    sampling_steps,
    stacked_digits,
)
from jgen.train.logs import best_of  # noqa: E402

STUDIES: dict[str, Any] = {
    "sampling_noise": sampling_noise,
    "sampling_steps": sampling_steps,
    "receptive_field": receptive_field,
    "gan_gradients": gan_gradients,
    "optimal_discriminator": optimal_discriminator,
    "divergences": divergences,
    "mode_collapse": mode_collapse,
    "stacked_digits": stacked_digits,
    "classification": classification,
    "anomaly": anomaly,
    "inpainting": inpainting,
    "caption_words": caption_words,
    "free_form_jacobian": free_form_jacobian,
    "fonts": fonts,
}
DOCUMENTS = (
    "README.md",
    "docs/comparison.md",
    "docs/guidance.md",
    "docs/results.md",
    "docs/studies.md",
    "docs/gan_theory.md",
    "docs/uses.md",
    "docs/free_form_jacobian.md",
    "docs/fonts.md",
    "docs/text_to_image.md",
)
# Records of jgen 0.1 do not name the validation score that compares checkpoints: it is the first of these they have.
OLD_SCORES = {"nll": "min", "nll_codes": "min", "iwae": "max", "elbo": "max", "bits_per_dim": "min", "mse": "min"}

# Title, record, and the published FID, precision and recall of ImageNet 512x512 (Peebles & Xie 2023, table 3).
GUIDANCE = (
    ("ADM", "score_adm_digits", ("23.24", "0.73", "0.60")),
    ("ADM-U", "guidance_adm_u", ("9.96", "0.75", "0.64")),
    ("ADM-G", "guidance_adm_g", ("7.72", "0.87", "0.42")),
    ("ADM-G, ADM-U", "guidance_adm_g_adm_u", ("3.85", "0.84", "0.53")),
    ("DiT", "guidance_dit", ("12.03", "0.75", "0.64")),
    ("DiT-G, scale 1.25", "guidance_dit_g_1.25", ("4.64", "0.81", "0.57")),
    ("DiT-G, scale 1.50", "score_dit_digits", ("3.04", "0.84", "0.54")),
    ("upsampler alone, of real small images", "score_upsampler_digits", ("-", "-", "-")),
)


def read(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """(path from the root, document) of the result files that match."""
    files = sorted((ROOT / "results").glob(pattern))
    return [(str(path.relative_to(ROOT)), json.loads(path.read_text())) for path in files]


def table(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return tables.markdown([head, *lines])


def speed() -> str:
    """One row per task, setting and peer of every side-by-side benchmark, and where the rows come from."""
    lines, records = [], []
    for path, document in read("speed_*.json"):
        versions: dict[str, str] = {}
        for row in document["rows"]:
            mine, best = row["seconds"]["jgen"], row["seconds"][row["best_variant"]]
            versions |= {k: v for k, v in row["versions"].items() if k not in ("device", "threads")}
            name = f"{document['title']}: {row['task']}" + (f", {row['setting']}" if row["setting"] else "")
            peer = row["peer"].replace("another JAX", f"JAX {versions.get('other jax')}")
            peer += f" ({row['best_variant']})" if len(row["seconds"]) > 2 else ""
            ratio = f"**{row['ratio']:.{2 if row['ratio'] > 0.1 else 3}f}**"
            lines.append([name, f"{mine:.3g} s", f"{best:.3g} s: {peer}", ratio])
        packages = ", ".join(f"{name} {version}" for name, version in versions.items())
        origin = f"{document['case']}; {document['processor']}; {packages}; commit {short(document['commit'])}"
        records.append(f"- [{Path(path).name}]({path}): `{document['command']}`; {origin}")
    speeds = table(["case", "jgen", "peer", "jgen / peer"], lines)
    return f"{speeds}\n\n{loop()}\n\n{pixel_times()}\n\nMeasured by:\n\n" + "\n".join(records) + "\n"


def loop() -> str:
    """The training loop's rate compared with that of the bare compiled step."""
    sentences = []
    for path, document in read("loop_*.json"):
        looped, bare = median(document["loop"]), median(document["bare"])
        seconds = f"{looped:.3g} s a step beside {bare:.3g} s, **{100 * document['ratio']:.0f} %** of its rate"
        origin = f"`{document['command']}`; {document['processor']}; jax {document['jax']}; commit"
        sentences.append(f"{document['config']}: {seconds} ([record]({path}): {origin} {short(document['commit'])})")
    if not sentences:
        return ""
    beside = "The training loop, with data, logging and checkpoints, beside the bare compiled step"
    return f"{beside}: {'; '.join(sentences)}."


def pixel_times() -> str:
    """Microseconds per pixel of the autoregressive samplers, by the size of the image."""
    tables_of_records = []
    for path, document in read("pixel_times.json"):
        sizes = sorted({row["size"] for row in document["rows"]})
        times = {(row["system"], row["size"]): row["seconds_per_pixel"] for row in document["rows"]}
        names = list(dict.fromkeys(row["system"] for row in document["rows"]))
        lines = [[name, *(f"{times[name, size] * 1e6:.3g}" for size in sizes)] for name in names]
        about = f"Time per pixel and image of the cached samplers in microseconds, {document['num']} images at a time"
        origin = f"`{document['command']}`; {document['processor']}; jax {document['jax']}; commit"
        tables_of_records.append(
            f"{about} ([record]({path}): {origin} {short(document['commit'])}):\n\n"
            + table(["system", *(f"{size}x{size}" for size in sizes)], lines)
        )
    return "\n\n".join(tables_of_records)


def systems() -> str:
    """One row per system: its name and paper, its configuration, and the first score measured for it."""
    measured: dict[str, str] = {}
    for path, document in read("score_*.json"):
        score = scored(document)[0].partition(",")[0].partition(";")[0]
        likelihood = document.get("likelihood")
        if likelihood:
            score += f" ({LIKELIHOODS[likelihood['kind']]})"
        binarised = "binarised " if likelihood and likelihood["protocol"]["binarise"] != "none" else ""
        measured.setdefault(configured_by(document), f"[{score} on {binarised}{document['data']}]({path})")
    lines = []
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        title = (import_config(path).__doc__ or "").partition("\n")[0]
        name, _, reference = title.partition(" (")
        number = re.search(r"arXiv (\d{4}\.\d{4,5})", reference)
        paper = f"[{number[1]}](https://arxiv.org/abs/{number[1]})" if number else "-"
        place = path.relative_to(ROOT)
        lines.append([name, paper, f"[{place}]({place})", measured.get(path.stem, "-")])
    return table(["system", "paper", "configuration", "measured"], lines) + "\n"


def scores() -> str:
    """One row per scored run, and the commands of each."""
    lines, commands = [], []
    for path, document in read("score_*.json"):
        score, kind = scored(document)
        training = "; ".join(filter(None, [trained(document), by_checkpoint(path.replace("score_", "kept_"))]))
        published = training_of(document).facts.published or "-"
        lines.append([f"[{configured_by(document)}]({path})", document["data"], score, kind, training, published])
        commands += ["", f"# {Path(path).stem}: {origin(document)}"]
        commands += [" ".join(["python", *latest(document)["command"]]), document["command"]]
    if not lines:
        return ""
    head = ["system", "data", "score", "of what", "training", "published"]
    block = "\n".join(["```text", *commands[1:], "```"])
    marks = legend(line[-1] for line in lines)
    return f"Measured. {marks}\n\n{table(head, lines)}\n\nThe commands of these rows:\n\n{block}\n"


def training_of(document: dict[str, Any]) -> Training:
    """The configuration that a scored run was trained with."""
    return load_training(latest(document)["command"][1])


def configured_by(document: dict[str, Any]) -> str:
    """The name of the configuration file that a scored run was trained with, which is not always its model's."""
    return Path(training_of(document).config.partition(":")[0]).stem


def guidance() -> str:
    """One row per method of guidance and upsampling: scores on the digits, and published ones of ImageNet 512x512."""
    lines, commands = [], []
    for title, name, published in GUIDANCE:
        for path, document in read(f"{name}.json"):
            scores, labels = document["quality"], document["labels"]
            distance = scores["frechet_distance"]
            value = f"{distance['value']:.1f} ({distance['low']:.1f} to {distance['high']:.1f})"
            cells = [f"{scores[part]['value']:.3f}" for part in ("precision", "recall")]
            lines.append([f"[{title}]({path})", value, *cells, f"{100 * labels['accuracy']:.1f}", *published])
            trainings = [document, *document.get("cascade", [])]
            commands += [f"# {title}: scored at {short(document['environment']['commit'])}"]
            commands += [" ".join(["python", *latest(one)["command"]]) for one in trainings]
            commands += [document["command"], ""]
    if not lines:
        return ""
    network = document["quality"]["network"]
    head = ["", network, "precision", "recall", "class accuracy, %", "ImageNet 512: FID", "precision", "recall"]
    block = "\n".join(["```text", *commands[:-1], "```"])
    return f"{table(head, lines)}\n\n{block}\n"


def scored(document: dict[str, Any]) -> tuple[str, str]:
    """The scores of a run, with the kind of likelihood and the protocol."""
    cells, kinds = [], []
    if likelihood := document.get("likelihood"):
        names = {"samples": "K", "num": "N"}
        protocol = ", ".join(f"{names.get(name, name)} {value}" for name, value in likelihood["protocol"].items())
        nats = f"{-likelihood['nats']['mean']:.2f} ± {likelihood['nats']['standard_error']:.2f} nats"
        cells.append(f"**{likelihood['bits_per_dim']['mean']:.3f} bits/dim**, {nats}")
        kinds.append(f"{LIKELIHOODS[likelihood['kind']]}: {protocol}")
    if labels := document.get("labels"):
        defaults = sampling_defaults(training_of(document))
        sampling = rows.describe_sampling(document["sampling"]["options"], defaults)
        cells.append(f"class accuracy **{100 * labels['accuracy']:.1f} %**")
        kinds.append(f"{labels['num']} samples, {sampling}")
    if held_out := document.get("held_out"):
        cells.append(", ".join(f"{name} **{value:.3f}**" for name, value in held_out["scores"].items()))
        about = held_out["protocol"]
        kinds.append(f"{about['num']} {about['split']} images, {about['batch_size']} at a time")
    if zero_shot := document.get("zero_shot"):
        cells.append(f"zero-shot accuracy **{100 * zero_shot['accuracy']['mean']:.1f} %**")
        kinds.append(f"{zero_shot['num']} images, {zero_shot['classes']} classes")
    for field, scores in document.get("alignment", {}).items():
        shares = [f"{field} alignment **{100 * scores['aligned']:.1f} %**"] if "aligned" in scores else []
        others = [f"{name} **{value:.1f}**" for name, value in scores.items() if name.startswith("clip_score")]
        cells.append(", ".join(shares + others))
        kinds.append(f"{scores['num']} samples")
    if scores := document.get("texture_error"):
        held_out = f"held-out crops {100 * scores['crops']:.1f} %"
        cells.append(f"statistics off by **{100 * scores['mean']:.2f} %**, {held_out}")
        kinds.append(f"{scores['num']} samples, {scores['num_crops']} {scores['split']} crops")
    if scores := document.get("reconstruction"):
        cells.append(reconstruction(scores))
        kinds.append(f"reconstructions of {scores['num']} {scores['split']} images")
    return "; ".join(cells), "; ".join(kinds)


def reconstruction(scores: dict[str, Any]) -> str:
    """The errors of a model's reconstructions of held-out images, and the use of its codes."""
    distance = f"r{scores['quality']['network']} {scores['quality']['frechet_distance']['value']:.2f}"
    error = "exact" if scores["psnr"] is None else f"PSNR **{scores['psnr']:.2f} dB**"
    text = f"{error}, {distance}"
    for grid in scores.get("grids", [scores] if "codes" in scores else []):
        text += f"; perplexity **{grid['perplexity']:.1f}** of {grid['codes']} codes, {grid['codes_used']} used"
    return text


def trained(document: dict[str, Any]) -> str:
    """How long a run was trained, and its best and last validation score."""
    steps, minutes = document["step"], document["training_minutes"]
    whole = document.get("trained", {"steps": steps, "minutes": minutes})
    length = f"{whole['steps']:,} steps, {whole['minutes']:.0f} min"
    length += f"; scored at step {steps:,}" if steps != whole["steps"] else ""
    return "; ".join(filter(None, [length, best_and_last(document)]))


def by_checkpoint(path: str) -> str:
    """For runs without a validation score: the best and last kept checkpoint by class accuracy; "" without a record."""
    if not (ROOT / path).is_file():
        return ""
    checkpoints = json.loads((ROOT / path).read_text())
    best, last = max(checkpoints, key=lambda one: one["class_accuracy"]), checkpoints[-1]
    at_best = f"{100 * best['class_accuracy']:.1f} % at best (step {best['step']:,})"
    samples = f"{len(checkpoints)} checkpoints, {last['num']} samples each"
    return f"[by checkpoint]({path}) {at_best}, {100 * last['class_accuracy']:.1f} % at last ({samples})"


def short(commit: str | None) -> str:
    """The first characters of a commit, with "+" for local changes."""
    return (commit or "-")[:8] + ("+" if str(commit).endswith("+") else "")


def starts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The environment of each start of a run's training; later entries hold only what changed."""
    return [document["training"], *document["training"].get("resumed", [])]


def latest(document: dict[str, Any]) -> dict[str, Any]:
    """The environment of the last start of a run's training."""
    return {name: value for start in starts(document) for name, value in start.items()}


def origin(document: dict[str, Any]) -> str:
    """Seed, machine and commits of a run, and the commit that scored it."""
    first, *resumed = starts(document)
    commits = [f"commit {short(first['commit'])}"]
    commits += [f"from step {start['step']:,} {short(start['commit'])}" for start in resumed if "commit" in start]
    commits += [f"scored at {short(document['environment']['commit'])}"]
    last = latest(document)
    return f"seed {last['seed']}; {last['processor']}, jax {last['versions']['jax']}; {', '.join(commits)}"


def best_and_last(document: dict[str, Any]) -> str:
    """The best and the last validation score of a run; "" if it has no score that is compared."""
    validation = document["validation"]
    score = document.get("best")
    if "best" not in document:
        names = [name for name in OLD_SCORES if any(name in line for line in validation)]
        score = (names[0], OLD_SCORES[names[0]]) if names else None
    best = best_of(validation, score)
    if score is None or best is None:
        return ""
    name = score[0]
    return f"validation {name} {best[name]:.4g} at best (step {best['step']:,}), {validation[-1][name]:.4g} at last"


def comparison(data: str) -> str:
    """The whole report of a comparison, with headings one level lower than in its own file."""
    path = ROOT / "results" / f"comparison-{data}" / "comparison.md"
    if not path.is_file():
        return ""
    text = path.read_text().partition("\n")[2].strip()
    return re.sub("^#", "##", text, flags=re.MULTILINE) + "\n"


def study(name: str) -> str:
    """The table of a study's record, with its runs, commands and environment."""
    path = ROOT / "results" / "studies" / f"{name}.json"
    if not path.is_file():
        return ""
    rows = json.loads(path.read_text())["rows"]
    commands = dict.fromkeys(row["command"] for row in rows)
    commits = dict.fromkeys(short(row["environment"]["commit"]) for row in rows)
    environment = rows[0]["environment"]
    origin = f"{environment['processor']}; jax {environment['versions']['jax']}; commit {', '.join(commits)}"
    origin += f"; [record](results/studies/{name}.json)"
    subject = of_rows(rows)
    given = "\n".join(f"`{command}`" for command in commands)
    return f"{STUDIES[name].table(rows)}\n\n{subject}; {origin}.\n\n{given}\n"


def of_rows(rows: list[dict[str, Any]]) -> str:
    """The systems and checkpoints in the rows of a study."""
    setting = rows[0]["setting"]
    if "run" in setting:
        return of_runs(rows)
    if "draws" in setting:
        return of_networks(rows)
    return f"In {sum(row['seconds'] for row in rows):.0f} seconds"


def of_runs(rows: list[dict[str, Any]]) -> str:
    """The runs in the rows of a study, and their checkpoints."""
    settings = [row["setting"] for row in rows if row["setting"].get("score") != "network"]  # which is not a run
    runs = dict.fromkeys(f"{setting['system']} at step {setting['step']}" for setting in settings)
    samples = f"{settings[0]['samples']} samples per row, " * bool(settings[0]["samples"])
    return f"Of {', '.join(runs)}; {samples}seed {settings[0]['seed']}"


def of_networks(rows: list[dict[str, Any]]) -> str:
    """The same for a study of networks with random parameters."""
    setting = rows[0]["setting"]
    pixels = f"{setting['size']} x {setting['size']} pixels"
    return f"Of images of {pixels}; {setting['draws']} random networks per row, seed {setting['seed']}"


def main() -> None:
    """Writes the tables, or with --check exits with an error if a document has different ones."""
    blocks = {"systems": systems(), "speed": speed(), "scores": scores()}
    for folder in sorted((ROOT / "results").glob("comparison-*")):
        data = folder.name.partition("-")[2]
        blocks[f"comparison {data}"] = comparison(data)
    blocks |= {f"study {name}": study(name) for name in STUDIES} | {"guidance": guidance()}
    placed = set()
    for name in DOCUMENTS:
        path = ROOT / name
        text = before = path.read_text()
        for block, content in blocks.items():
            if name.startswith("docs/"):
                content = content.replace("](results/", "](../results/")
            place = re.compile(f"(<!-- {block} -->\n).*?(<!-- /{block} -->)", re.DOTALL)
            text, times = place.subn(lambda match, content=content: f"{match[1]}{content}{match[2]}", text)
            placed |= {block} if times else set()
        if text != before and "--check" in sys.argv:
            sys.exit(f"{name} is not what results/ says: run python benchmarks/tables.py")
        elif text != before:
            path.write_text(text)
    missing = [block for block, content in blocks.items() if content and block not in placed]
    if missing:
        sys.exit(f"no document has a place for the tables {', '.join(missing)}")


if __name__ == "__main__":
    main()
