"""Points of the plane as images of two pixels: their frequencies beside the density's, examples apart, mistakes."""

import numpy as np
import pytest
from conftest import mistake
from scipy.stats import chisquare

from jgen.data import dataset
from jgen.data.config import Config
from jgen.data.grids import make_grid
from jgen.data.plane import NUM_TRAIN, plane_source, to_pixels
from jgen.prob import densities


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_cells_have_the_probability_of_the_density(name):
    images = plane_source(name, Config()).splits["train"].fetch(np.arange(NUM_TRAIN))["image"]
    p = np.exp(np.asarray(densities.DENSITIES[name]().log_prob(densities.grid(256)), np.float64))
    expected = p.reshape(16, 16, 16, 16).sum(axis=(1, 3)) / p.sum() * NUM_TRAIN
    seen = np.zeros((16, 16))
    column, row = images.reshape(-1, 2).T // 16
    np.add.at(seen, (row, column), 1)
    often = expected > 5
    assert often.sum() >= 25 and seen[~often].sum() < 2 * expected[~often].sum() + 20
    counts, wanted = (np.append(x[often], x[~often].sum() + 1e-9) for x in (seen, expected))
    assert chisquare(counts, wanted * counts.sum() / wanted.sum()).pvalue > 1e-3


def test_a_cell_has_its_column_and_row_and_the_nearest_is_that_of_points_outside():
    points = np.array([[-4.0, 3.99], [0.0, -0.01], [9.0, -9.0]])
    np.testing.assert_array_equal(to_pixels(points).reshape(3, 2), [[0, 255], [128, 127], [255, 0]])


def test_an_example_is_a_function_of_its_split_and_number(cache):
    splits = plane_source("rings", Config()).splits
    some = splits["train"].fetch(np.array([7, 3]))["image"]
    np.testing.assert_array_equal(splits["train"].fetch(np.arange(8))["image"][[7, 3]], some)
    assert np.any(splits["test"].fetch(np.array([7, 3]))["image"] != some)
    whole = dataset.load(Config(name="density:rings"))
    assert whole.spec.image.shape == (1, 2, 1) and whole.spec.image.levels == 256 and not whole.spec.fields
    np.testing.assert_array_equal(whole.splits["train"].fetch(np.array([7, 3]))["image"], some)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"name": "density:moons"}, ["no density 'moons'", "gaussians, rings, spirals, checkerboard"]),
        ({"size": 8}, ["data.size is 8", "two pixels"]),
        ({"flip": True}, ["data.flip is set", "coordinates"]),
        ({"fields": ("text",)}, ["data.fields has text", "no fields"]),
    ],
)
def test_mistakes_are_one_line(options, words):
    mistake(lambda: dataset.load(Config(**{"name": "density:rings", **options})), *words)


def test_grids_of_points_are_scatter_plots():
    corners = np.array([[0, 0], [255, 0], [0, 255], [255, 255]], np.uint8).reshape(4, 1, 2, 1)
    for image, (row, column) in zip(corners, [(511, 0), (511, 511), (0, 0), (0, 511)]):
        plot = make_grid(image[None], 1)
        assert plot.shape == (512, 512, 1) and plot[row, column] > 0 and (plot > 0).sum() == 9
    assert (make_grid(corners, 2) > 0).sum() == 36
