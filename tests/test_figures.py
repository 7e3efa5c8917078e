"""Figures of trained models: what stands where in the picture, and which model can have which."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import real_images
from PIL import Image

import jgen
import train
from jgen import figures
from jgen.core.keys import image_keys
from jgen.data import dataset
from jgen.data.pictures import to_display
from jgen.errors import NotSupported, UserError

QUICK = ["--train.steps", "2", "--train.validate-every", "0", "--train.sample-every", "0"]


def make_run(cache, folder, system, family="vae"):
    train.command([f"configs/{family}/{system}.py:tiny", *QUICK, "--workdir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """A class-conditional VAE of 8x8 digits after two steps."""
    return make_run(cache, tmp_path_factory.mktemp("runs") / "vae", "vae")


def draw(run, tmp_path, *options):
    """The figure's cells, (rows, columns, 8, 8), each pixel once, with values 0 .. levels - 1 of the model."""
    out = tmp_path / "figure.png"
    assert figures.command([str(run), *options, "--out", str(out)]) == 0
    sheet = np.asarray(Image.open(out))
    cell, gap = 48, 2
    rows, columns = (sheet.shape[0] - gap) // (cell + gap), (sheet.shape[1] - gap) // (cell + gap)
    at = [slice(gap + i * (cell + gap), gap + i * (cell + gap) + cell, cell // 8) for i in range(max(rows, columns))]
    cells = np.stack([[sheet[at[r], at[c]] for c in range(columns)] for r in range(rows)])
    levels = jgen.load(run).model.images.levels
    values = np.round(cells / 255 * (levels - 1)).astype(np.uint8)
    np.testing.assert_array_equal(to_display(values, levels), cells)
    return values


def images_of(run, n):
    gen = jgen.load(run)
    return gen, *real_images(gen.config.data, n)


@pytest.mark.slow
def test_reconstructions_stand_below_their_images(run, tmp_path):
    cells = draw(run, tmp_path, "--kind", "reconstructions", "--rows", "2", "--columns", "3")
    gen, images, label = images_of(run, 6)
    assert cells.shape == (4, 3, 8, 8)
    np.testing.assert_array_equal(cells[0::2].reshape(6, 8, 8), images[..., 0])
    made = gen.reconstruct(jax.random.key(0), images, label=label)
    assert np.abs(cells[1::2].reshape(6, 8, 8).astype(int) - made[..., 0]).max() <= 1


def test_an_interpolation_of_a_conditional_model_lies_between_images_of_one_class(run, tmp_path):
    cells = draw(run, tmp_path, "--kind", "interpolation", "--rows", "3", "--columns", "5")
    gen, images, label = images_of(run, 120)
    assert cells.shape == (3, 5, 8, 8)
    for row in cells:
        where = [np.flatnonzero((images[..., 0] == end).all((1, 2))) for end in (row[0], row[-1])]
        assert label[where[0][0]] == label[where[1][0]] and where[0][0] != where[1][0]
        first = images[where[0][:1]]
        made = gen.reconstruct(jax.random.key(0), first, label=label[where[0][:1]])
        assert np.abs(row[1].astype(int) - made[0, ..., 0]).max() <= 1
        both, given = images[[where[0][0], where[1][0]]], label[[where[0][0], where[1][0]]]
        z = gen.encode(jax.random.key(0), both, label=given)
        between = np.concatenate([z[1:], z.mean(axis=0, keepdims=True)])
        wanted = gen.decode(jax.random.key(0), between, label=int(given[0]))
        assert np.abs(row[[3, 2]].astype(int) - wanted[..., 0]).max() <= 1
    assert np.any(cells[:, 1] != cells[:, 3]) and np.any(cells[:, 2] != cells[:, 3])


def test_an_interpolation_takes_no_more_images_than_there_are(run, tmp_path):
    """By default as well: the digits' test split has fewer than 40 for each of 8 rows."""
    assert draw(run, tmp_path, "--kind", "interpolation").shape == (8, 11, 8, 8)
    assert draw(run, tmp_path, "--kind", "interpolation", "--rows", "2", "--start", "257").shape == (2, 11, 8, 8)


def test_an_interpolation_by_texts_has_one_text_a_row(monkeypatch):
    """That of its first image, whose pair is the next image."""
    images, text = np.arange(4 * 12).reshape(4, 2, 2, 3), np.arange(8).reshape(4, 2)
    monkeypatch.setattr(figures, "fetch", lambda *_: {"image": images, "text": text})
    given = {}

    def interpolate(key, first, second, num, **named):
        given.update(named, first=first, second=second)
        return np.stack([first + 100] * num, axis=1)

    model = SimpleNamespace(name="drawer", conditions=("text",))
    gen, splits = SimpleNamespace(model=model, interpolate=interpolate), {"test": SimpleNamespace(num=4)}
    cells, columns = figures.interpolation(gen, splits, figures.Arguments(kind="interpolation", rows=2, columns=4))
    assert columns == 4 and cells.shape == (8, 2, 2, 3)
    np.testing.assert_array_equal(given["text"], text[[0, 2]])
    np.testing.assert_array_equal(cells[[0, 3, 4, 7]], images)
    np.testing.assert_array_equal(cells[[1, 5]], images[[0, 2]] + 100)
    figures.check_conditions(model, figures.Arguments(kind="interpolation"))
    with pytest.raises(UserError, match="^drawer is conditioned on text: prior knows classes only; [^\n]*$"):
        figures.check_conditions(model, figures.Arguments(kind="prior"))


def test_data_that_has_changed_since_the_training_is_refused(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    document = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**document, "data_fingerprint": "0123"}))
    with pytest.raises(UserError, match="digits has changed since .*own was trained on it"):
        figures.command([str(own), "--out", str(tmp_path / "x.png")])


def test_a_traversal_moves_one_dimension_a_row(run, tmp_path):
    cells = draw(run, tmp_path, "--kind", "traversal", "--rows", "8", "--columns", "3", "--start", "5", "--label", "2")
    gen, images, label = images_of(run, 297)
    assert cells.shape == (4, 3, 8, 8)  # tiny has four latent dimensions
    z = gen.encode(jax.random.key(0), images[5:], label=label[5:])
    widest = np.argsort(-z.std(axis=0))[0]
    points = np.tile(z[:1], (3, 1))
    points[:, widest] = [-3.0, 0.0, 3.0]
    wanted = gen.decode(jax.random.key(0), points, label=2)
    assert np.abs(cells[0].astype(int) - wanted[..., 0]).max() <= 1


def test_a_manifold_is_a_square_around_the_origin(run, tmp_path):
    cells = draw(run, tmp_path, "--kind", "manifold", "--columns", "3", "--label", "7")
    gen, *_ = images_of(run, 1)
    assert cells.shape == (3, 3, 8, 8)
    middle = gen.decode(jax.random.key(0), np.zeros((1, 4), np.float32), label=7)
    assert np.abs(cells[1, 1].astype(int) - middle[0, ..., 0]).max() <= 1
    assert len(np.unique(cells.reshape(9, -1), axis=0)) > 1


@pytest.mark.slow
def test_an_attribute_is_the_difference_of_two_classes_mean_latents(cache, tmp_path):
    run = make_run(cache, tmp_path / "autoencoder", "autoencoder")
    cells = draw(run, tmp_path, "--kind", "attribute", "--rows", "2", "--columns", "3", "--classes", "3", "8")
    gen, images, label = images_of(run, 297)
    assert cells.shape == (2, 3, 8, 8)
    seen = figures.fetch(gen, dataset.load(gen.config.data).splits["train"], np.arange(1000), 0)
    z = gen.encode(jax.random.key(0), seen["image"])
    means = [z[seen["label"] == each].mean(axis=0) for each in (3, 8)]
    own = gen.encode(jax.random.key(0), images[label == 3][:2])
    for column, strength in enumerate((0.0, 0.5, 1.0)):
        wanted = gen.decode(jax.random.key(0), own + strength * (means[1] - means[0]))
        assert np.abs(cells[:, column].astype(int) - wanted[..., 0]).max() <= 1
    assert np.any(cells[:, 0] != cells[:, 2])
    for options, words in (
        (["--classes", "3", "12"], "--classes has 12: it must be from 0 to 9"),
        (["--rows", "200"], "200 images of class 0 are wanted: 297 images from --start 0 have"),
    ):
        with pytest.raises(UserError, match=f"^{words}[^\n]*$"):
            figures.command([str(run), "--kind", "attribute", *options, "--out", str(tmp_path / "x.png")])


@pytest.mark.slow
def test_completions_stand_below_what_is_kept(run, cache, tmp_path):
    pixels = make_run(cache, tmp_path / "pixels", "pixelcnn", "autoregressive")
    cells = draw(pixels, tmp_path, "--kind", "completions", "--rows", "2", "--columns", "3", "--kept", "0.25")
    gen, images, label = images_of(pixels, 3)
    assert cells.shape == (4, 3, 8, 8)
    np.testing.assert_array_equal(cells[0], images[..., 0])
    np.testing.assert_array_equal(cells[1:, :, :2], np.tile(images[None, :, :2, :, 0], (3, 1, 1, 1)))
    assert not cells[1, :, 2:].any()
    mask = np.arange(8)[:, None] * np.ones(8) < 2
    wanted = gen.inpaint(jax.random.key(0), np.tile(images, (2, 1, 1, 1)), mask, label=np.tile(label, 2))
    np.testing.assert_array_equal(cells[2:].reshape(6, 8, 8), wanted[..., 0])
    with pytest.raises(NotSupported, match="vae cannot restore"):
        figures.command([str(run), "--kind", "restorations", "--out", str(tmp_path / "x.png")])


@pytest.mark.parametrize("name,kept", [("top", 48), ("left", 48), ("border", 48), ("random", 48)])
def test_masks_keep_the_part_that_is_asked_for(name, kept):
    mask = figures.kept_pixels(figures.Arguments(mask=name, kept=0.75), 8, 8)
    assert mask.sum() == kept
    edges = {"top": mask[:6].all(), "left": mask[:, :6].all(), "border": not mask[2:6, 2:6].any()}
    assert edges.get(name, True)


def test_a_prior_is_normal_latents_above_samples(run, cache, tmp_path):
    cells = draw(run, tmp_path, "--kind", "prior", "--rows", "2", "--columns", "10")
    gen, images, label = images_of(run, 297)
    assert cells.shape == (6, 10, 8, 8)
    z, eps = gen.encode(jax.random.key(0), images, label=label), np.random.default_rng(0).standard_normal((20, 4))
    labels = np.arange(20) % 10
    for rows, latents in ((cells[:2], eps), (cells[2:4], z.mean(axis=0) + z.std(axis=0) * eps)):
        wanted = gen.decode(jax.random.key(0), latents.astype(np.float32), label=labels)
        assert np.abs(rows.reshape(20, 8, 8).astype(int) - wanted[..., 0]).max() <= 1
    np.testing.assert_array_equal(cells[4:].reshape(20, 8, 8), gen.sample(jax.random.key(0), 20)[..., 0])
    run = make_run(cache, tmp_path / "autoencoder", "autoencoder")
    with pytest.raises(NotSupported, match="autoencoder cannot sample: it has no distribution of codes"):
        figures.command([str(run), "--kind", "prior", "--out", str(tmp_path / "x.png")])


@pytest.mark.slow
def test_discrete_codes_reconstruct_and_do_not_interpolate(cache, tmp_path):
    run = make_run(cache, tmp_path / "vq", "vq_vae")
    cells = draw(run, tmp_path, "--kind", "reconstructions", "--rows", "1", "--columns", "2")
    assert cells.shape == (2, 2, 8, 8)
    for kind in ("interpolation", "traversal", "manifold", "attribute", "prior"):
        needs = "that takes continuous latents, from encode or invert, and decode"
        with pytest.raises(NotSupported, match=f"vq_vae cannot interpolate: {needs}; it can sample, encode"):
            figures.command([str(run), "--kind", kind, "--out", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "options,words",
    [
        ([], "which run?"),
        (["RUN", "--kind", "portrait"], "invalid choice 'portrait'"),
        (["RUN", "--rows", "0"], "--rows is 0"),
        (["RUN", "--start", "-1"], "--start is -1"),
        (["RUN", "--start", "100000"], "test has"),
        (["RUN", "--rows", "1000"], "11000 images from --start 0 are wanted"),
        (["RUN", "--out", "x.jpg"], "must end in .png"),
        (["RUN", "--kind", "interpolation", "--columns", "3"], "--columns is 3"),
        (["RUN", "--kind", "interpolation", "--start", "292"], "8 pairs of one class are wanted: 5 images have"),
        (["RUN", "--kind", "manifold", "--label", "12"], "label is 12"),
        (["RUN", "--kind", "manifold", "--rows", "3"], "--rows is 3: a manifold has as many rows as --columns"),
        (["RUN", "--label", "3"], "--label is 3: reconstructions takes the classes of its images"),
        (["RUN", "--kind", "attribute"], "vae is conditioned on the class: its latents do not hold it"),
        (
            ["RUN", "--kind", "attribute", "--classes", "3", "3"],
            "--classes is 3 3: an attribute is the difference of two",
        ),
        (["RUN", "--classes", "3", "8"], "--classes is 3 8: reconstructions has no classes to move between"),
        (["RUN", "--kept", "0.25"], "--kept is 0.25: reconstructions does not read it, completions would"),
        (["RUN", "--kind", "completions", "--kept", "1"], "--kept is 1.0: it must be above 0 and below 1"),
        (["missing"], "there is no run at missing"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, options, words):
    options = [str(run) if option == "RUN" else option for option in options]
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        figures.command(options)
    assert words in str(caught.value)


@pytest.mark.slow
def test_projections_stand_below_their_images_and_rows_are_of_rising_truncation(cache, tmp_path):
    run = make_run(cache, tmp_path / "biggan", "biggan", "gan")
    gen, images, label = images_of(run, 2)
    cells = draw(run, tmp_path, "--kind", "inversions", "--rows", "1", "--columns", "2")
    np.testing.assert_array_equal(cells[0], images[..., 0])
    key = jax.random.key(0)
    z = gen.invert(key, images, label=label)
    assert np.abs(cells[1].astype(int) - gen.decode(key, z, label=label)[..., 0]).max() <= 1
    cells = draw(run, tmp_path, "--kind", "truncation", "--rows", "4", "--columns", "2")
    for row, value in zip(cells, (1.0, 2.0, 3.0, 4.0)):  # parts of the model's own, 4
        wanted = gen.sample(key, 2, label=np.arange(2), truncation=value)[..., 0]
        assert np.abs(row.astype(int) - wanted).max() <= 1


@pytest.mark.slow
def test_mixed_styles_stand_below_and_beside_their_samples(cache, tmp_path):
    run = make_run(cache, tmp_path / "stylegan2", "stylegan2", "gan")
    gen = jgen.load(run)
    cells = draw(run, tmp_path, "--kind", "style_mixing", "--rows", "3", "--columns", "3")
    assert cells.shape == (4, 3, 8, 8) and not cells[0, 0].any()
    samples = gen.sample(jax.random.key(0), 5, label=np.arange(5))[..., 0]
    np.testing.assert_array_equal(cells[0, 1:], samples[:2])
    np.testing.assert_array_equal(cells[1:, 0], samples[2:])
    keys = image_keys(jax.random.key(0), np.arange(5))
    for row in range(3):
        for column in range(2):
            at = [np.array([row + 2]), np.array([column])]
            conds = tuple({"label": place} for place in at)
            mixed = gen.model.functions["mix_styles"](gen.params, gen.ctx, tuple(keys[place] for place in at), conds)
            assert np.abs(cells[row + 1, column + 1].astype(int) - np.asarray(mixed)[0, ..., 0]).max() <= 1
    with pytest.raises(UserError, match="--columns is 1: style_mixing has 2 or more"):
        draw(run, tmp_path, "--kind", "style_mixing", "--columns", "1")


def test_mixed_styles_are_of_models_that_have_some(run, tmp_path):
    with pytest.raises(UserError, match="vae has no styles to mix, as stylegan2 has"):
        draw(run, tmp_path, "--kind", "style_mixing", "--rows", "2", "--columns", "2")


def test_a_truncation_is_of_models_that_have_one(run, tmp_path):
    with pytest.raises(UserError, match="vae has no truncation"):
        draw(run, tmp_path, "--kind", "truncation", "--rows", "2", "--columns", "2")
