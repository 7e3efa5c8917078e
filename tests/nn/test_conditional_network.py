"""A U-Net bound to its data: labels that are dropped, parameters that begin as a teacher's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from specs import data_of
from stub_network import keys_of

from jgen.core.model import FrozenModel
from jgen.models.diffusion.flow_matching import Config
from jgen.nn import conditional_network, unet

NULL = 7
DATA = data_of(4, 4, 1, 256, 3)
BATCH = {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.array([0, 2], np.int32)}


def test_labels_are_dropped_at_their_rate():
    """By a binomial bound, each image by its own key; other fields and models without labels are left alone."""
    n = 4000
    batch = {"label": jnp.arange(n) % 3, "size": jnp.ones(n)}
    network = conditional_network.ConditionalNetwork(None, None, ("label", "size"), NULL)
    dropped = network.cond_for_training(keys_of(n), batch, 0.3)
    gone = np.asarray(dropped["label"]) == NULL
    assert abs(gone.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)
    np.testing.assert_array_equal(dropped["label"][~gone], batch["label"][~gone])
    np.testing.assert_array_equal(dropped["size"], batch["size"])
    few = network.cond_for_training(keys_of(5), {name: x[:5] for name, x in batch.items()}, 0.3)["label"]
    np.testing.assert_array_equal(few, dropped["label"][:5])
    assert np.all(np.asarray(network.without_class(batch)["label"]) == NULL)
    without = network._replace(conditions=())
    assert without.cond_for_training(keys_of(n), batch, 0.3) == without.without_class({}) == {}


@pytest.mark.slow
def test_parameters_begin_as_a_teachers_where_the_network_is_the_same():
    def network(**sizes):
        return conditional_network.make_conditional_network(
            Config(network=unet.Config(**{**vars(unet.TINY), **sizes})), DATA
        )

    student, taught = network(), network().init(jax.random.key(1), BATCH)
    frozen = {"teacher": FrozenModel({"unet": taught}, {})}
    params, extra = student.init_roles(jax.random.key(2), BATCH, frozen)
    assert extra == {}
    jax.tree.map(np.testing.assert_array_equal, params["unet"], taught)
    own = student.init_roles(jax.random.key(2), BATCH, {})[0]["unet"]
    assert not np.array_equal(own["conv_in"]["kernel"], taught["conv_in"]["kernel"])
    wider = network(channels=(8, 16))
    unlike = wider.init_roles(jax.random.key(2), BATCH, frozen)[0]["unet"]
    jax.tree.map(np.testing.assert_array_equal, unlike, wider.init(jax.random.key(2), BATCH))


def test_classes_of_data_that_has_none():
    mistake(
        lambda: conditional_network.make_conditional_network(Config(network=unet.TINY), data_of(4, 4, 1, 256)),
        "class_conditional",
    )
    for rate in (1.0, -0.1):
        mistake(lambda rate=rate: conditional_network.check_label_dropout(rate), f"label_dropout is {rate}")
