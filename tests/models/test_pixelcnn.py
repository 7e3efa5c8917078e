"""PixelCNN, Gated PixelCNN and PixelRNN as distributions: every image of a tiny size enumerated."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import all_images, enumerate_log_prob, pooled_chisquare
from naive_autoregressive import normal_params
from specs import data_of

from jgen.core import keys as rng
from jgen.core.generate import check_images, resolve_conditions, resolve_options, sample_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.autoregressive import gated_pixelcnn, pixelcnn, pixelrnn
from jgen.prob.autoregressive import categorical_log_prob

SYSTEMS = {
    "gated_pixelcnn": (gated_pixelcnn, {}),
    "pixelcnn": (pixelcnn, {}),
    "pixelrnn, rows": (pixelrnn, {"layer": "row"}),
    "pixelrnn, diagonals": (pixelrnn, {"layer": "diagonal"}),
}
GAIN = {"gated_pixelcnn": 2.0, "pixelcnn": 1.2, "pixelrnn": 2.0}
CLASSES = 2
SIZES = {
    "binary 2x2": (2, 2, 1, 2),
    "binary 3x3": (3, 3, 1, 2),
    "3 levels 2x2": (2, 2, 1, 3),
    "RGB 1x2": (1, 2, 3, 2),
    "RGB 1x2, 3 levels": (1, 2, 3, 3),
}


def make(system, size, **options):
    module, own = SYSTEMS[system]
    config = module.Config(features=6, blocks=2, hidden=6, class_conditional=True, **own)
    return make_model(replace(config, **options), data_of(*SIZES[size], CLASSES))


def make_params(model):
    """Parameters far from their start, so that no probability is as any other."""
    batch = {"image": np.zeros((1, *model.images.shape), np.uint8), "label": np.zeros(1, np.int32)}
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), batch, {})
    return normal_params(shapes, gain=GAIN[model.name])


CTX = Context(jnp.int32(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_probabilities_of_all_images_sum_to_one(system, size):
    model = make(system, size)
    params = make_params(model)
    by_class = [enumerate_log_prob(model, params, {"label": label}) for label in range(CLASSES)]
    for log_p in by_class:
        assert abs(np.exp(log_p).sum() - 1) < 1e-5
        assert np.ptp(log_p) > 1  # far from uniform
    assert np.abs(by_class[0] - by_class[1]).max() > 0.1  # the class matters


@pytest.mark.slow
@pytest.mark.parametrize("system,size", [
    ("gated_pixelcnn", "RGB 1x2"),
    ("pixelcnn", "binary 2x2"),
    ("pixelrnn, rows", "3 levels 2x2"),
    ("pixelrnn, diagonals", "binary 3x3"),
])  # fmt: skip
def test_frequencies_of_samples_are_the_enumerated_probabilities(system, size):
    model = make(system, size)
    params = make_params(model)
    n, label = 4000, 1
    images = sample_images(model, params, CTX, jax.random.key(3), n, cond={"label": label}, batch_size=n)
    log_p = [enumerate_log_prob(model, params, {"label": c}) for c in range(CLASSES)]
    assert pooled_chisquare(images, model.images.levels, log_p[label]) > 1e-3
    assert pooled_chisquare(images, model.images.levels, log_p[0]) < 1e-6  # the test can fail


@pytest.mark.slow
def test_temperature_divides_the_logits():
    model = make("gated_pixelcnn", "3 levels 2x2")
    params = make_params(model)
    network = gated_pixelcnn.GatedPixelCNN(3, 1, 6, 2, 6, num_classes=CLASSES)
    images = all_images(model.images)
    logits = jax.jit(network.apply)({"params": params["pixelcnn"]}, images, np.zeros(len(images), np.int32))
    n = 4000
    for temperature in (0.5, 2.0):
        drawn = sample_images(
            model, params, CTX, jax.random.key(4), n, cond={"label": 0}, batch_size=n, temperature=temperature
        )
        log_p = np.asarray(categorical_log_prob(logits / temperature, images), np.float64)
        assert pooled_chisquare(drawn, 3, log_p) > 1e-3


@pytest.mark.parametrize("system", ["gated_pixelcnn", "pixelrnn, diagonals"])
def test_completion_draws_from_the_conditional_distribution(system):
    model = make(system, "binary 3x3")
    params = make_params(model)
    n = 3000
    given = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]], np.uint8).reshape(1, 3, 3, 1).repeat(n, 0)
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    model.check_mask(mask)
    keys = rng.image_keys(jax.random.key(5), jnp.arange(n))
    masks = jnp.broadcast_to(mask, (n, 3, 3))
    cond = {"label": jnp.ones(n, jnp.int32)}
    drawn = np.asarray(jax.jit(model.inpaint)(params, CTX, keys, given, masks, cond))
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:, mask], given[:, mask])
    log_p = enumerate_log_prob(model, params, {"label": 1})
    possible = np.all(all_images(model.images)[:, mask] == given[:1, mask], axis=(1, 2))
    assert possible.sum() == 2**5
    assert pooled_chisquare(drawn, 2, np.where(possible, log_p, -np.inf)) > 1e-3


def test_log_prob_is_the_sum_of_log_softmax_at_the_image():
    logits = np.random.default_rng(0).normal(0, 3, (2, 3, 2, 1, 5))
    x = np.random.default_rng(1).integers(0, 5, (2, 3, 2, 1))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [sum(np.log(p[b, i, j, 0, x[b, i, j, 0]]) for i in range(3) for j in range(2)) for b in range(2)]
    np.testing.assert_allclose(categorical_log_prob(jnp.asarray(logits), x), expected, rtol=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_loss_is_the_negative_log_probability_a_dimension(system):
    model = make(system, "3 levels 2x2")
    params = make_params(model)
    images = all_images(model.images)[::7]
    batch = {"image": images, "label": np.arange(len(images), dtype=np.int32) % CLASSES}
    keys = rng.image_keys(jax.random.key(0), jnp.arange(len(images)))
    log_p, (loss, (metrics, _)), scores = jax.jit(
        lambda p: (
            model.log_prob(p, CTX, keys, images, {"label": batch["label"]}),
            model.phases[0].loss(p, CTX, keys, batch),
            model.validate(p, CTX, keys, batch),
        )
    )(params)
    np.testing.assert_allclose(loss, -np.mean(log_p) / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_dim"], loss / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(scores["nll"], -log_p, rtol=1e-5)
    assert model.likelihood == "exact"


# Bad input.


@pytest.mark.parametrize(
    "system,options,words",
    [
        ("gated_pixelcnn", {"features": 0}, "features is 0: it must be above zero"),
        ("gated_pixelcnn", {"features": 7}, "features is 7: it must be divisible by the images' 3 channels"),
        ("gated_pixelcnn", {"hidden": 8}, "hidden is 8: it must be divisible by the images' 3 channels"),
        ("gated_pixelcnn", {"blocks": 0}, "blocks is 0: it must be above zero"),
        ("gated_pixelcnn", {"kernel": 4}, "kernel is 4: it must be odd and 3 or more"),
        ("gated_pixelcnn", {"first_kernel": 1}, "first_kernel is 1: it must be odd and 3 or more"),
        ("gated_pixelcnn", {"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
        ("gated_pixelcnn", {"embedding": -1}, "embedding is -1"),
        ("gated_pixelcnn", {"dtype": "float16"}, "dtype is 'float16'"),
        ("gated_pixelcnn", {"sampling": gated_pixelcnn.Sampling(temperature=0.0)}, "temperature is 0.0"),
        ("pixelcnn", {"sampling": pixelcnn.Sampling(top_p=1.5)}, "top_p is 1.5: it must be above 0 and at most 1"),
        ("pixelcnn", {"sampling": pixelcnn.Sampling(top_k=9)}, "top_k is 9: it must be from 1 to 2, the levels"),
        ("pixelcnn", {"features": -3}, "features is -3: it must be above zero"),
        ("pixelrnn, rows", {"kernel": 4}, "kernel is 4: it must be odd and 3 or more"),
        ("pixelrnn, diagonals", {"layer": "column"}, "layer is 'column'"),
        ("pixelrnn, diagonals", {"features": 8}, "features is 8: it must be divisible by the images' 3 channels"),
        ("pixelcnn", {"kernel": 2}, "kernel is 2: it must be odd and 3 or more"),
        ("pixelcnn", {"sampling": pixelcnn.Sampling(temperature=-1.0)}, "temperature is -1.0"),
    ],
)
def test_configurations_that_no_model_can_be_made_of(system, options, words):
    with pytest.raises(UserError) as caught:
        make(system, "RGB 1x2", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("system", ["gated_pixelcnn", "pixelcnn"])
def test_what_a_model_cannot_be_asked_for(system):
    data, module = data_of(4, 4, 1, 2), SYSTEMS[system][0]
    with pytest.raises(UserError, match="class_conditional is True, but the data has no labels"):
        module.make(module.Config(class_conditional=True), data)
    model = module.make(module.Config(features=6, blocks=1, class_conditional=False), data)
    with pytest.raises(UserError, match=f"label is 3: {system} was trained without it, it takes no conditions"):
        resolve_conditions(model, {"label": 3}, 4)
    with pytest.raises(UserError, match="unknown option 'steps': sample of .* takes temperature"):
        resolve_options(model, "sample", {"steps": 3})
    with pytest.raises(UserError, match="images have the value 2: they must be from 0 to 1"):
        check_images(model, np.full((1, 4, 4, 1), 2, np.uint8))
    with pytest.raises(UserError, match="mask keeps the pixel at row 3, column 0"):
        model.check_mask(np.arange(16).reshape(4, 4) > 11)
    params = make_params(model)
    for temperature in (0.0, -0.5):
        with pytest.raises(UserError, match="temperature is .*: it must be above zero"):
            sample_images(model, params, CTX, jax.random.key(0), 1, temperature=temperature)
