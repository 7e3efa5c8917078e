"""Every command of the README and the guide runs: trainings with few steps and, where their data has to be prepared, on
pictures."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from contract_cases import SYSTEMS, make_case

import train
from jgen import evaluate
from jgen.cli import DEFAULT, import_config, import_file, load_config, parse
from jgen.compare import __main__ as compare
from jgen.errors import UserError

FEW = ["--train.steps", "2", "--train.batch-size", "4", "--train.validation-images", "4", "--train.sample-every", "0"]
FEW += ["--train.samples-per-class", "1"]


def few_steps(words, pictures):
    """A command of training as tests run it: few steps, of the system's tiny variant where its data are the embedded
    digits, otherwise on pictures, into the folder that the command itself would take."""
    config = words[1] if len(words) > 1 and not words[1].startswith("-") else DEFAULT
    experiment, _ = load_config(config, ROOT)
    path, _, variant = config.partition(":")
    variant = variant or next(iter(import_config(ROOT / path).VARIANTS))
    words = ["train.py", f"{path}:tiny" if experiment.data.name == "digits" else config, *words[2:], *FEW]
    if "--workdir" not in words:
        words += ["--workdir", f"runs/{Path(path).stem}-{variant}"]
    if experiment.data.name != "digits" and "--data.name" not in words:
        words += ["--data.name", f"folder:{pictures}"]
    return words


def commands():
    """The lines of the bash blocks of the README, then of the guide, split at && and without comments; not of the block
    about weights that a user brings, which tests/convert is about."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/guide.md"))
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    blocks = [block for block in blocks if "jgen.convert" not in block]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines if line for part in line.split("&&")]


def python_block():
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 28x28 grey pictures in ten classes, in place of a set that has to be prepared."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / str(label) / f"{i}.png")
    return folder


@pytest.mark.slow
def test_every_command_runs(python, pictures, tmp_path):
    for name in ("configs", "train.py", "sample.py", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    some = np.random.default_rng(0).integers(0, 256, (60, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "mine.npz", images=some, label=np.arange(60) % 10)
    ran = []
    for command in commands():
        words = shlex.split(command)
        if words[0] in ("pip", "pytest"):
            continue  # what the tests themselves are run with, and what continuous integration runs
        if "--text" in words or "--cond.low-resolution" in words:
            continue  # of runs with captions: tests/test_toy_conditions.py
        assert words[0] == "python", command
        places = {"folder:PATH": f"folder:{pictures}", "RUN": "runs/vdm-digits"}
        places |= {"npz:FILE": f"npz:{tmp_path / 'mine.npz'}"}
        words = [places.get(word, word) for word in words[1:]]
        if words[0] == "train.py" and "--list" not in words and "--help" not in words:
            words = few_steps(words, pictures)
        if words[:2] == ["-m", "jgen.evaluate"] and "--images" not in words:
            words += ["--samples", "60"]
        if words[:2] == ["-m", "jgen.compare"]:  # it takes an hour
            parse(compare.Arguments, words[2:], "", "")
        is_study = words[1].startswith("jgen.studies.")  # tests/studies runs them
        if words[0].startswith("benchmarks/") or words[1] in ("jgen.data.prepare", "jgen.compare") or is_study:
            words.append("--help")
        done = python(*words, cwd=tmp_path, check=False, timeout=300)
        assert done.returncode == 0, (command, done.stderr)
        if command == "python train.py":
            grid, following = done.stdout.splitlines()[-2:]
            assert (tmp_path / grid.removeprefix("samples: ")).is_file() and "python sample.py" in following
        ran.append(command)
    assert any(c.startswith("python train.py") for c in ran) and any(c.startswith("python sample.py") for c in ran)
    assert (tmp_path / "threes.png").stat().st_size > 0
    done = python("-c", python_block(), cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "runs")


def test_every_evaluation_and_comparison_that_the_documents_advise_is_a_command():
    """Parsed, not run; a run's own options are those of its model. Blocks that are generated from results/ have the
    commands of their commits."""
    text = "".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    text = re.sub(r"<!-- ([^/][^>]*) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
    lines = [
        line.split("  #")[0].strip("`") for line in re.findall(r"python -m jgen\.(?:evaluate|compare) [^\n`]+", text)
    ]
    kinds = {"evaluate": evaluate.Arguments, "compare": compare.Arguments}
    seen = []
    for line in lines:
        _, _, module, *words = shlex.split(line)
        name = module.removeprefix("jgen.")
        words = [word for word in words if not word.startswith("RUN") and word not in ("[RUN", "...]", "...")]
        while words and not words[0].startswith("-"):
            words.pop(0)
        of_run = ("--scoring.", "--sampling.", "--frozen.")
        while own := [place for place, word in enumerate(words) if word.startswith(of_run)]:
            del words[own[0] : own[0] + 2]
        parse(kinds[name], words, "", "")
        seen.append(name)
    assert seen.count("evaluate") > 5 and seen.count("compare") >= 2


def test_the_list_has_a_line_a_system_and_one_a_variant_of_a_system(capsys):
    paths = sorted((ROOT / "configs").glob("*/*.py"))
    variants = {str(path.relative_to(ROOT)): import_config(path).VARIANTS for path in paths}
    train.command(["--list"])
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [[name, ", ".join(of_system)] for name, of_system in variants.items()]
    for path in paths:
        name = str(path.relative_to(ROOT))
        for given in (path.stem, name):
            train.command(["--list", given])
            lines = [re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()]
            assert lines == [[f"{name}:{variant}", line] for variant, line in variants[name].items()]
    with pytest.raises(UserError, match="^--list nothing: there is no such system; the systems are .*ddpm"):
        train.command(["--list", "nothing"])


def is_link(name):
    """Whether a system is only a part of others: it has no images and no likelihood, and no decoder of its own."""
    model, frozen = make_case(name)
    return model.sample is None and model.log_prob is None and (model.decode is None or bool(frozen))


PUBLISHED = {"stable_diffusion"}  # of weights from elsewhere: nothing is trained here that could be scored


def test_a_system_says_in_its_file_what_it_reached():
    scores = {path: json.loads(path.read_text()) for path in (ROOT / "results").glob("score_*.json")}
    systems = {path.stem for path in (ROOT / "jgen" / "models").glob("*/*.py") if "\ndef make(" in path.read_text()}
    every, systems = set(systems), systems - PUBLISHED
    systems -= {name for name in systems & set(SYSTEMS) if is_link(name)}  # scored with what depends on it
    scored = {score["system"] for score in scores.values()}
    missing = [f"results/score_{name}_<data>.json" for name in sorted(systems - scored)]
    assert not missing, f"add {', '.join(missing)}: train it, then python -m jgen.evaluate RUN --out FILE"
    assert scored <= every, f"results/ has scores of {sorted(scored - every)}: jgen/models has no such file"
    for path, score in scores.items():
        docstring = next((ROOT / "jgen" / "models").glob(f"*/{score['system']}.py")).read_text().split('"""')[1]
        measured = " ".join(docstring.partition("Measured: ")[2].split())
        numbers = []
        if score["likelihood"] and score["likelihood"]["protocol"]["levels"] == 2:
            numbers.append(f"{-score['likelihood']['nats']['mean']:.2f} nats")
        elif score["likelihood"]:
            numbers.append(f"{score['likelihood']['bits_per_dim']['mean']:.3f} bits/dim")
        elif score.get("held_out"):
            numbers += [f"{name} {value:.3f}" for name, value in score["held_out"]["scores"].items()]
        elif score.get("texture_error"):
            numbers.append(f"off by {100 * score['texture_error']['mean']:.2f} %")
        elif score.get("labels"):
            numbers.append(f"{100 * score['labels']['accuracy']:.1f} % of samples")
        elif score.get("alignment"):
            numbers += [f"text alignment {100 * each['aligned']:.1f} %" for each in score["alignment"].values()]
        elif "codes" in score["reconstruction"]:
            codes = score["reconstruction"]
            numbers.append(f"perplexity {codes['perplexity']:.1f} of {codes['codes']}")
        else:
            numbers.append(f"PSNR {score['reconstruction']['psnr']:.2f} dB")
        for words in (*numbers, f"{score['step']:,} steps of", score["training"]["command"][1]):
            file = f"jgen/models/*/{score['system']}.py"
            assert words in measured, f"add {words!r} of {path.name} to 'Measured:' in {file}: it has {measured!r}"


def test_a_scored_run_is_a_row_with_its_protocol_and_record(tmp_path, monkeypatch):
    where = {"processor": "2 x CPU", "versions": {"jax": "0.12"}, "commit": "0123456789abcdef"}
    where["command"] = ["train.py", "configs/vae/vae.py:mnist"]
    longer = [*where["command"], "--train.steps", "80000"]
    where |= {"seed": 0, "resumed": [{"step": 400, "commit": "fedcba9876543210+", "command": longer}]}
    score = {"system": "vae", "data": "mnist", "step": 80000, "training_minutes": 59.4, "training": where}
    score |= {"command": "python -m jgen.evaluate RUN", "environment": {"commit": "00112233445566"}}
    score["validation"] = [{"step": 5, "elbo": -99.0}, {"step": 7, "elbo": -91.25}, {"step": 9, "elbo": -92.5}]
    likelihood = {
        "kind": "lower_bound",
        "nats": {"mean": -90.03, "standard_error": 0.22},
        "bits_per_dim": {"mean": 0.166},
    }
    likelihood["protocol"] = {"split": "test", "num": 500, "binarise": "dynamic", "seed": 0, "samples": 5000}
    (tmp_path / "results").mkdir()
    tables = import_file(ROOT / "benchmarks" / "tables.py")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.scores() == ""
    (tmp_path / "results" / "score_a.json").write_text(json.dumps({**score, "likelihood": likelihood}))
    read = {**score, "system": "dcgan", "likelihood": None, "labels": {"accuracy": 0.975, "num": 1000}}
    read["sampling"] = {"options": {"temperature": 0.8}}
    (tmp_path / "results" / "score_b.json").write_text(json.dumps(read))
    distance = {"network": "FD-digits-12", "frechet_distance": {"value": 2.345}}
    made = {"num": 60, "split": "test", "psnr": 21.0, "perplexity": 76.66, "codes": 128, "codes_used": 100}
    quantised = {**read, "system": "vq_vae", "labels": None, "reconstruction": {**made, "quality": distance}}
    quantised |= {"step": 60000, "trained": {"steps": 80000, "minutes": 61.0}}
    (tmp_path / "results" / "score_c.json").write_text(json.dumps(quantised))
    made = tables.scores()
    vae, dcgan, codes = (line for line in made.splitlines() if line.startswith("| ["))
    assert "PSNR **21.00 dB**, rFD-digits-12 2.35; perplexity **76.7** of 128 codes, 100 used" in codes
    assert "| reconstructions of 60 test images |" in codes
    assert "80,000 steps, 61 min; scored at step 60,000;" in codes
    assert "80,000 steps, 59 min; validation elbo -91.25 at best (step 7), -92.5 at last" in vae
    assert "90.03 ± 0.22 nats | bound: split test, N 500, binarise dynamic, seed 0, K 5000" in vae
    assert "[vae](results/score_a.json)" in vae and "86.8" in vae
    assert "class accuracy **97.5 %** | 1000 samples" in dcgan
    title, trained, scored = made[made.index("# score_a") :].splitlines()[:3]
    commits = "commit 01234567, from step 400 fedcba98+, scored at 00112233"
    assert title == f"# score_a: seed 0; 2 x CPU, jax 0.12; {commits}"
    assert (trained, scored) == (" ".join(["python", *longer]), "python -m jgen.evaluate RUN")
