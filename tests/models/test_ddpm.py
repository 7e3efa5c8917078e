"""What a DDPM asks of its network and makes of the answers, with a function whose answers are known in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import data_of

from jgen.core import generate
from jgen.core import keys as rng
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import from_json, to_json
from jgen.models.diffusion import ddpm
from jgen.nn import unet
from jgen.prob.pixels import to_uint8
from jgen.prob.process import discrete, to_x0
from jgen.prob.schedules import make_schedule, sampling_times
from jgen.samplers import linear
from jgen.samplers.diffusion import Sampling
from jgen.samplers.guidance import clipped

T, CLASSES = 5, 3
DATA = data_of(2, 2, 1, 256, CLASSES)
NETWORK = unet.Config(channels=(8,), blocks=1, attention=(), head_dim=8, groups=4)
SMALL = {"network": NETWORK, "num_timesteps": T}
X_0 = np.array([0, 255, 100, 30], np.uint8).reshape(1, 2, 2, 1)
CTX = Context(jnp.int32(0))


def keys_of(n):
    return rng.image_keys(jax.random.key(1), jnp.arange(n))


@pytest.fixture
def network(monkeypatch):
    """A function (x_t, t, label) in place of the U-Net; its arguments are in `network.calls`."""

    class Stub:
        def __init__(self):
            self.calls, self.answer = [], lambda x_t, t, label: jnp.zeros_like(x_t)

        def apply(self, variables, x_t, t, label, key_drop, vector):
            self.calls.append((x_t, t, label, key_drop))
            return self.answer(x_t, t, label)

    stub = Stub()
    monkeypatch.setattr(unet, "make_unet", lambda *sizes, **options: stub)
    return stub


def make(data=DATA, **options):
    return ddpm.make(ddpm.Config(**{**SMALL, "sampling": Sampling(steps=3), **options}), data)


def batch_of(n):
    return {"image": np.broadcast_to(X_0, (n, 2, 2, 1)), "label": (np.arange(n) % CLASSES).astype(np.int32)}


def oracle(prediction, schedule):
    """The right answer where all images are `X_0`, by the definitions of eps and v."""
    x_0 = np.asarray(X_0, np.float32) / 127.5 - 1

    def answer(x_t, t, label):
        ab = schedule.alpha_bar[np.asarray(t)].reshape(-1, 1, 1, 1)
        eps = (x_t - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
        targets = {"eps": eps, "x0": x_0 + 0 * eps, "v": np.sqrt(ab) * eps - np.sqrt(1 - ab) * x_0}
        return jnp.asarray(targets[prediction], jnp.float32)

    return answer


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_loss_of_the_right_answer_is_zero_and_of_no_answer_its_square(network, prediction):
    model, n = make(prediction=prediction), 4000
    network.answer = oracle(prediction, make_schedule("linear", T))

    def loss():
        return float(model.phases[0].loss({"unet": {}}, CTX, keys_of(n), batch_of(n))[0])

    validated = model.validate({"unet": {}}, CTX, keys_of(n), batch_of(n))["mse"]
    assert loss() < 1e-6 and validated.shape == (n,) and np.max(validated) < 1e-4
    network.answer = lambda x_t, t, label: jnp.zeros_like(x_t)
    x_0 = np.asarray(X_0, np.float64) / 127.5 - 1
    ab = make_schedule("linear", T).alpha_bar[1:]
    square = np.mean(x_0**2)
    expected = {"eps": 1.0, "x0": square, "v": np.mean(ab + (1 - ab) * square)}[prediction]
    assert loss() == pytest.approx(expected, abs=5 * np.sqrt(2 / (4 * n)))


@pytest.mark.slow
def test_times_are_uniform_and_labels_are_dropped_in_training_alone(network):
    model, n = make(label_dropout=0.3), 6000
    batch = batch_of(n)
    model.phases[0].loss({"unet": {}}, CTX, keys_of(n), batch)
    _, t, label, key_drop = network.calls.pop()
    t, label = np.asarray(t), np.asarray(label)
    counts = np.bincount(t, minlength=T + 1)
    assert counts[0] == 0 and len(counts) == T + 1
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
    dropped = label == CLASSES
    np.testing.assert_array_equal(label[~dropped], batch["label"][~dropped])
    assert abs(dropped.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n) and key_drop.shape == (n,)
    assert abs(np.corrcoef(t, dropped)[0, 1]) < 5 / np.sqrt(n)
    model.validate({"unet": {}}, CTX, keys_of(n), batch)
    _, _, label, key_drop = network.calls.pop()
    np.testing.assert_array_equal(label, batch["label"])
    assert key_drop is None


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_samples_are_those_of_the_guided_network(network, sampler, scale):
    """out(null) + scale (out(label) - out(null)), by a network whose answer is a line in the class."""
    n, o = 6, Sampling(sampler=sampler, steps=3, spacing="trailing", eta=0.5)
    model = make(prediction="v", sampling=o)
    network.answer = lambda x_t, t, label: 0.3 * x_t + 0.2 * (label - 1.0).reshape(-1, 1, 1, 1)
    label, process = jnp.array([0, 1, 2, 0, 1, 2]), discrete(make_schedule("linear", T))
    samples = model.sample({"unet": {}}, CTX, keys_of(n), {"label": label}, guidance_scale=scale)
    mixed = (CLASSES + scale * (label - CLASSES)).reshape(-1, 1, 1, 1)

    def denoise(x_t, t):
        return to_x0("v", process, x_t, t, 0.3 * x_t + 0.2 * (mixed - 1.0))

    key_start, key_steps = rng.split(keys_of(n), 2)
    times = np.array(sampling_times(T, 3, "trailing")) / T
    table = linear.ddim(process, times, 0.5) if sampler == "ddim" else linear.ancestral(process, times, "beta_tilde")
    x, _ = linear.run(clipped(denoise), table, rng.normal(key_start, DATA.image.shape), key_steps)
    assert np.max(np.abs(np.asarray(samples, int) - np.asarray(to_uint8(x, 256), int))) <= 1
    assert len(np.unique(np.asarray(samples).reshape(n, -1), axis=0)) == n


@pytest.mark.slow
def test_one_program_takes_every_scale_of_guidance(network):
    """But for 0 and 1, of half the evaluations; each gives what the scale as a constant gives."""
    model, n = make(prediction="v"), 4
    network.answer = lambda x_t, t, label: 0.3 * x_t + 0.2 * (label - 1.0).reshape(-1, 1, 1, 1)
    programs = generate.compiled.cache_info().misses
    for scale in (0.0, 1.0, 1.5, 2.0, 7.5):
        images = generate.sample_images(model, {"unet": {}}, CTX, jax.random.key(1), n, guidance_scale=scale)
        direct = model.sample({"unet": {}}, CTX, keys_of(n), {"label": jnp.arange(n) % CLASSES}, guidance_scale=scale)
        assert np.max(np.abs(images.astype(int) - np.asarray(direct, int))) <= 1
    assert generate.compiled.cache_info().misses == programs + 3
    with pytest.raises(UserError, match="^guidance_scale is -1.0: it must be zero or above"):
        generate.sample_images(model, {"unet": {}}, CTX, jax.random.key(1), n, guidance_scale=-1.0)


@pytest.mark.slow
def test_a_model_without_classes_gives_none_to_its_network(network):
    model = make(data_of(2, 2, 1, 256), class_conditional=False)
    assert not model.conditions
    assert model.sample({"unet": {}}, CTX, keys_of(2), {}).shape == (2, 2, 2, 1)
    assert network.calls and all(label is None for _, _, label, _ in network.calls)
    network.calls.clear()
    assert model.log_prob({"unet": {}}, CTX, keys_of(2), batch_of(2)["image"], {}).shape == (2,)
    assert network.calls and all(label is None for _, _, label, _ in network.calls)


OLD_CONFIG = {
    "class": "jgen.models.diffusion.ddpm:Config",
    "channels": [8, 16],
    "blocks": 1,
    "attention": [4],
    "head_dim": 8,
    "groups": 4,
    "dropout": 0.1,
    "class_conditional": True,
    "label_dropout": 0.2,
    "num_timesteps": 10,
    "schedule": "cosine",
    "beta_1": 1e-4,
    "beta_T": 0.02,
    "prediction": "v",
    "bound_variance": "beta_tilde",
    "dtype": "bfloat16",
    "sampling": {
        "class": "jgen.models.diffusion.ddpm:Sampling",
        "sampler": "ancestral",
        "steps": 5,
        "spacing": "linspace",
        "times": [10, 5, 1],
        "eta": 0.5,
        "variance": "beta",
        "guidance_scale": 2.0,
        "clip": False,
    },
}


def test_a_configuration_of_version_0_1_loads():
    """Its sizes become the network's, whole times fractions of T, and its spacing stays one of a chain."""
    network = unet.Config((8, 16), 1, (4,), 8, 4, 0.1, "bfloat16")
    old = Sampling(
        "ancestral", 5, "linspace", (1.0, 0.5, 0.1), eta=0.5, variance="beta", guidance_scale=2.0, clip=False
    )
    options = {"label_dropout": 0.2, "num_timesteps": 10, "schedule": "cosine", "prediction": "v"}
    config = ddpm.Config(network, **options, bound_variance="beta_tilde", sampling=old)
    assert from_json(OLD_CONFIG) == config == from_json(to_json(config))
    # What a document lacks takes the default that it had then.
    bare = {"class": OLD_CONFIG["class"], "channels": [8]}
    assert from_json(bare) == ddpm.Config(unet.Config(channels=(8,)), sampling=Sampling(spacing="trailing"))
