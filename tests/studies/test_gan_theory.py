"""Studies of adversarial training: divergences against closed forms and SciPy, the best discriminator and the best
Gaussian against SciPy, gradients against the formula of the loss, data and records of games."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from conftest import ROOT, mistake

from jgen import sample_scores
from jgen.compare.systems import load_training
from jgen.core import keys as rng
from jgen.nn.gan import Discriminator
from jgen.studies import divergences, gan_gradients, mode_collapse, optimal_discriminator, scores, stacked_digits

SHIFTS = (0.5, 2.0, 6.0)
NORMAL = scipy.stats.norm


def measured(family, name, bandwidth=1.0):
    """(values, gradients) at `SHIFTS`."""
    row = divergences.measure({"family": family, "divergence": name, "bandwidth": bandwidth, "shifts": SHIFTS})
    return row["values"], row["gradients"]


def jensen_shannon(p, q, low, high):
    """By SciPy's adaptive quadrature."""

    def integrand(x):
        middle = (p(x) + q(x)) / 2
        return (scipy.special.rel_entr(p(x), middle) + scipy.special.rel_entr(q(x), middle)) / 2

    return scipy.integrate.quad(integrand, low, high, limit=400, epsabs=1e-12)[0]


def between(shift):
    """JS of N(0, 1) and N(shift, 1)."""
    return jensen_shannon(NORMAL(0, 1).pdf, NORMAL(shift, 1).pdf, -9, 9 + shift)


def test_divergences_of_gaussians_are_those_of_closed_forms():
    shift, h = np.array(SHIFTS), 0.7
    width = h**2 + 2
    scale = 2 * h / np.sqrt(width)
    forms = {  # value, and its derivative by the shift
        "kl_pq": (shift**2 / 2, shift),
        "kl_qp": (shift**2 / 2, shift),
        "tv": (scipy.special.erf(shift / np.sqrt(8)), NORMAL.pdf(shift / 2)),
        "w1": (shift, np.ones(3)),
        "mmd2": (scale * -np.expm1(-(shift**2) / (2 * width)), scale * shift / width * np.exp(-(shift**2) / 2 / width)),
        "js": ([between(s) for s in SHIFTS], [(between(s + 1e-3) - between(s - 1e-3)) / 2e-3 for s in SHIFTS]),
    }
    assert forms.keys() == divergences.TITLES.keys()
    for name, (value, gradient) in forms.items():
        values, gradients = measured("gaussian", name, h)
        np.testing.assert_allclose(values, value, rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(gradients, gradient, rtol=2e-3, err_msg=name)


def test_where_supports_part_only_transport_and_kernels_have_a_gradient():
    """Of densities that are zero outside an interval, whose shifted ones SciPy has too."""
    width = divergences.HALF_WIDTH
    density = scipy.stats.cosine(scale=width / np.pi)
    assert density.std() == pytest.approx(1, rel=1e-6)
    x = np.linspace(-3, 3, 25)
    np.testing.assert_allclose(np.exp(divergences.log_density("cosine", jnp.asarray(x))), density.pdf(x), atol=1e-6)
    assert SHIFTS[1] < 2 * width < SHIFTS[2]
    assert measured("cosine", "kl_pq") == ([None] * 3, [None] * 3)
    values, gradients = measured("cosine", "js")
    js = jensen_shannon(density.pdf, lambda x: density.pdf(x - SHIFTS[1]), -width, width + SHIFTS[1])
    np.testing.assert_allclose(values[1:], [js, np.log(2)], rtol=1e-4)
    assert gradients[1] > 0.1 and gradients[2] == 0.0
    values, gradients = measured("cosine", "w1")
    np.testing.assert_allclose([values, gradients], [SHIFTS, np.ones(3)], rtol=1e-4)
    assert measured("cosine", "mmd2")[1][2] > 1e-3


def test_the_best_discriminator_measures_the_jensen_shannon_divergence_and_no_other_more():
    """With D* = p / (p + q), by an integral of SciPy's."""
    shift = 1.5
    x = np.linspace(-9.0, 10.5, 1001)
    log_p, log_q = NORMAL(0, 1).logpdf(x), NORMAL(shift, 1).logpdf(x)

    def value(outputs):
        return optimal_discriminator.value(outputs, log_p, log_q, x[1] - x[0])

    best = value(log_p - log_q)
    assert best == pytest.approx(2 * between(shift) - 2 * np.log(2), abs=1e-8)
    for seed in range(3):
        assert value(log_p - log_q + 0.3 * np.random.default_rng(seed).standard_normal(1001)) < best


@pytest.mark.slow
def test_the_gaussian_nearest_to_two_modes():
    """By KL(p, q) it has the data's mean and variance; by JS it is SciPy's, over both modes or at one of them."""
    halves = (2.0, 5.0)
    by_kl = optimal_discriminator.measure_fit({"objective": "kl_pq", "halves": halves})
    np.testing.assert_allclose(by_kl["means"], [0, 0], atol=1e-6)
    np.testing.assert_allclose(by_kl["stds"], np.sqrt(1 + np.square(halves)), rtol=1e-3)
    by_js = optimal_discriminator.measure_fit({"objective": "js", "halves": halves})
    assert by_js["means"][0] < 1e-3 and by_js["means"][1] == pytest.approx(5, abs=0.05)
    x = np.linspace(-18, 18, 1201)
    for i, half in enumerate(halves):
        p = (NORMAL(-half, 1).pdf(x) + NORMAL(half, 1).pdf(x)) / 2

        def js(at, p=p):
            q = NORMAL(at[0], np.exp(at[1])).pdf(x)
            terms = scipy.special.rel_entr(p, (p + q) / 2) + scipy.special.rel_entr(q, (p + q) / 2)
            return scipy.integrate.trapezoid(terms, x) / 2

        starts = ([0.1, np.log(half)], [half, 0.1])
        best = min((scipy.optimize.minimize(js, start, method="Nelder-Mead") for start in starts), key=lambda r: r.fun)
        assert by_js["values"][i] == pytest.approx(best.fun, rel=1e-3)
        assert by_js["stds"][i] == pytest.approx(np.exp(best.x[1]), rel=1e-2)
        for row in (by_kl, by_js):
            at = NORMAL(row["means"][i], row["stds"][i])
            intervals = [(-half - 2, min(-half + 2, 0)), (max(half - 2, 0), half + 2)]
            assert row["quality"][i] == pytest.approx(sum(at.cdf(b) - at.cdf(a) for a, b in intervals), abs=1e-3)


def test_data_of_games_are_what_they_are_said_to_be():
    keys = rng.image_keys(jax.random.key(0), jnp.arange(4000))
    x = np.asarray(jax.jit(optimal_discriminator.draw_two_modes)(keys, jnp.full((4000, 1), 3.0)))[:, 0]
    assert abs(x.mean()) < 4 * np.sqrt(10 / 4000) and x.var() == pytest.approx(10, rel=0.05)
    draw = jax.jit(mode_collapse.draw_points)
    for kind, make in enumerate(mode_collapse.CENTRES.values()):
        points, centres = np.asarray(draw(keys, jnp.full((4000, 1), float(kind)))), make()
        distances = np.linalg.norm(points[:, None] - centres[None], axis=-1)
        counts, share = np.bincount(distances.argmin(1), minlength=len(centres)), 1 / len(centres)
        assert np.abs(counts / 4000 - share).max() < 4.5 * np.sqrt(share / 4000)
        assert np.sqrt(np.mean(distances.min(1) ** 2) / 2) == pytest.approx(mode_collapse.STD, rel=0.05)


@pytest.mark.slow
def test_a_game_about_points_is_counted_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mode_collapse, "EVERY", 2)
    hinge = mode_collapse.Contest("hinge", clip=0.01)
    monkeypatch.setattr(mode_collapse, "CONTESTS", {"hinge": hinge})
    sizes = ["--steps", "4", "--batch-size", "16", "--seeds", "2"]
    assert mode_collapse.command(["--data", "grid", *sizes, "--out", str(tmp_path)]) == 0
    assert "| grid | hinge |" in capsys.readouterr().out
    assert (tmp_path / "mode_collapse.png").stat().st_size > 10_000
    (row,) = json.loads((tmp_path / "mode_collapse.json").read_text())["rows"]
    assert row["steps"] == [0, 2, 4] and row["setting"]["num_modes"] == 25 and row["seconds"] >= 0
    assert np.shape(row["modes"]) == np.shape(row["quality"]) == (2, 3) and row["quality"][0] != row["quality"][1]
    assert all(0 <= modes <= 25 for curve in row["modes"] for modes in curve)
    assert np.abs(row["points"]).max() <= 1


def test_norms_of_a_generators_gradient_are_those_of_the_losses():
    """Of x = m + exp(s) z, by hand: E of -D'(x) D(x) dx and of -D'(x) (1 - D(x)) dx, D' that of the output before the
    sigmoid by finite differences, dx = (1, exp(s) z)."""
    mean, std = 0.5, 1.5
    models = {loss: optimal_discriminator.make_game(mean, std, loss) for loss in gan_gradients.LOSSES}
    batch = {"image": jnp.zeros((1, 1, 1, 1)), "index": jnp.arange(1)}
    params, extra = jax.jit(models["minimax"].init)(jax.random.key(0), batch, {})
    state = SimpleNamespace(params=params, extra=extra)
    norms = gan_gradients.make_norms(models, 64, seed=3)(state)
    keys = rng.image_keys(rng.stream(rng.seed_key(3), rng.SCORE), jnp.arange(64))
    z = np.asarray(rng.normal(keys, (1,)))[:, 0]
    network = Discriminator((32, 32), 3)
    judge = jax.jit(lambda x: network.apply({"params": params["disc"]}, x.reshape(-1, 1, 1, 1), None))
    x = mean + std * z
    outputs, derivatives = judge(x), (judge(x + 1e-3) - judge(x - 1e-3)) / 2e-3
    probability = 1 / (1 + np.exp(-outputs))
    for name, weights in (("minimax", probability), ("non_saturating", 1 - probability)):
        gradient = [np.mean(-weights * derivatives * by) for by in (np.ones(64), std * z)]
        assert norms[name] == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


def test_stacked_digits_are_read_as_their_numbers(digits):
    """By the published classifier, which is right about 98 % of digits: about 94 % of three."""
    config = load_training("configs/gan/dcgan.py:tiny").experiment.data
    reader = sample_scores.load_reader(digits, config, scores.ScoringProtocol(), False)
    split = stacked_digits.stacked(digits.splits["train"], 400, seed=1)
    batch, again = split.fetch(np.arange(400)), split.fetch(np.array([7, 3]))
    assert batch["image"].shape == (400, 8, 8, 3) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(again["image"], batch["image"][[7, 3]])
    np.testing.assert_array_equal(again["label"], batch["label"][[7, 3]])
    assert len(np.unique(batch["label"])) > 250  # 330 are expected of 400 draws from 1,000
    modes = stacked_digits.read_modes(lambda images: reader.apply(images)[2], batch["image"])
    assert np.mean(modes == batch["label"]) > 0.9
    first = np.repeat(batch["image"][..., :1], 3, axis=-1)
    np.testing.assert_array_equal(
        stacked_digits.read_modes(lambda images: reader.apply(images)[2], first), modes // 100 * 111
    )


@pytest.mark.slow
def test_gradients_of_a_frozen_generator(tmp_path, monkeypatch, cache, capsys):
    monkeypatch.setattr(gan_gradients, "EPOCHS", (1,))
    few = ["--config", "configs/gan/dcgan.py:tiny", "--steps", "400", "--every", "200", "--examples", "16"]
    assert gan_gradients.command([*few, "--out", str(tmp_path)]) == 0
    assert "| none | 1 epoch |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "gan_gradients.json").read_text())["rows"]
    assert [row["setting"]["disc_norm"] for row in rows] == ["batch", "none"]
    for row in rows:
        assert row["steps"] == [0, 200, 400] and row["accuracy"][0] is None and row["accuracy"][-1] > 0.8
        # As D rejects samples, the first loss's gradient falls beside the second's: by 1 - D for each.
        ratio = np.divide(row["minimax"], row["non_saturating"])
        assert ratio[-1] < 0.5 * ratio[0]


@pytest.mark.slow
def test_a_game_about_stacked_digits(tmp_path, monkeypatch, cache, capsys):
    name = "hinge, spectral"
    monkeypatch.setattr(stacked_digits, "CONTESTS", {name: stacked_digits.CONTESTS[name]})
    few = ["--steps", "3", "--every", "2", "--samples", "500"]
    assert stacked_digits.command([*few, "--out", str(tmp_path)]) == 0
    assert f"| stacked digits | {name} |" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "stacked_digits.json").read_text())["rows"]
    assert row["steps"] == [2, 3] and 1 <= row["modes"][0][-1] < row["real"]["modes"] <= 500


@pytest.mark.slow
def test_a_trained_discriminator_comes_near_the_best(tmp_path):
    setting = {"part": "value", "shift": 1.0, "steps": 300, "batch_size": 256, "seed": 0}
    row = optimal_discriminator.measure_value(setting)
    assert row["values"][0] < row["values"][-1] < row["optimal"] + 1e-4
    assert row["values"][-1] == pytest.approx(row["jensen_shannon"], abs=2e-3)
    game = {
        "part": "game",
        "loss": "minimax",
        "start": 0.0,
        "halves": (1.0,),
        "steps": 500,
        "batch_size": 256,
        "seed": 0,
    }
    assert optimal_discriminator.measure_game(game)["stds"] == pytest.approx([np.sqrt(2)] * 3, rel=0.1)


@pytest.mark.parametrize("study", [divergences, optimal_discriminator, mode_collapse, gan_gradients])
def test_figures_and_tables_are_of_the_records(study, tmp_path):
    name = study.__name__.rpartition(".")[2]
    rows = json.loads((ROOT / "results" / "studies" / f"{name}.json").read_text())["rows"]
    study.draw(tmp_path / "figure.png", rows)
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    assert study.table(rows).count("\n") >= 8


def test_a_mistake_is_one_line(tmp_path):
    out = ["--out", str(tmp_path)]
    mistake(lambda: divergences.command(["--bandwidth", "0", *out]), "--bandwidth is 0")
    mistake(lambda: optimal_discriminator.command(["--steps", "0", *out]), "--steps is 0")
    mistake(lambda: mode_collapse.command(["--data", "ring,torus", *out]), "--data has 'torus'", "grid")
    mistake(lambda: gan_gradients.command(["--steps", "10", "--every", "20", *out]), "--every is 20")
    setting = {"config": "configs/gan/gan.py:tiny", "disc_norm": "batch"}
    training = load_training(setting["config"])
    mistake(lambda: gan_gradients.make_dcgan(training, None, setting, "minimax"), "must be a configuration of dcgan")
