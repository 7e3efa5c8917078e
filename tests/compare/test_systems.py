"""Which systems there are, and what each depends on: asked from configurations, here from toy ones."""

import pytest

from jgen.compare import systems
from jgen.compare.facts import Facts
from jgen.errors import UserError

CONFIG = """
from jgen.compare.facts import Facts
from jgen.data.config import Config as Data
from jgen.experiment import Experiment
from jgen.models.vae.vq_prior import Config

VARIANTS = {"digits": "", "other": ""}


def get_config(variant):
    return Experiment(Config(), Data(name="digits"), frozen=FROZEN_RUNS)


"""


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """Writes a configuration that depends on others: (name, {role: configuration}, what else the file declares)."""
    monkeypatch.setattr(systems, "ROOT", tmp_path)
    (tmp_path / "configs" / "toy").mkdir(parents=True)

    def write(name, frozen, more="", declares=True):
        text = CONFIG + f"FROZEN_RUNS = { {role: 'runs/any name' for role in frozen} }\n"
        text += f"FROZEN = {frozen}\n" if declares else ""
        (tmp_path / "configs" / "toy" / f"{name}.py").write_text(text + more)
        return f"configs/toy/{name}.py"

    return write


def test_a_chain_is_trained_in_order_and_each_run_once(configs):
    first = configs("first", {})
    second = configs("second", {"autoencoder": first})
    third = configs("third", {"teacher": second, "autoencoder": first})
    training = systems.load_training(f"{third}:digits")
    names = ["first-digits", "second-digits", "third-digits"]
    assert [each.name for each in training.in_order()] == names
    assert training.frozen["teacher"].frozen["autoencoder"].config == training.frozen["autoencoder"].config


def test_a_frozen_run_may_be_of_another_variant(configs):
    first = configs("first", {})
    second = configs("second", {"text_encoder": f"{first}:other"})
    assert systems.load_training(f"{second}:digits").frozen["text_encoder"].name == "first-other"


def test_a_role_that_no_configuration_trains_is_a_mistake(configs):
    alone = configs("alone", {"autoencoder": "x"}, declares=False)
    message = "depends on runs/any name: its FROZEN does not say which configuration trains autoencoder"
    with pytest.raises(UserError, match=message):
        systems.load_training(f"{alone}:digits")


def test_a_system_cannot_stand_on_itself(configs):
    configs("one", {"teacher": "configs/toy/two.py"})
    two = configs("two", {"teacher": "configs/toy/one.py"})
    with pytest.raises(UserError, match="one.py:digits depends on .*two.py:digits: a system cannot depend on itself"):
        systems.load_training(f"{two}:digits")


def test_facts_and_sizes_are_the_configuration_s(configs):
    more = "FACTS = Facts(True, 'FID 1 (C)', compared=False)\n"
    more += "def at_height(experiment, own, height):\n    return own, height\n"
    declared = systems.load_training(f"{configs('declared', {}, more)}:digits")
    assert declared.facts == Facts(True, "FID 1 (C)", False) and declared.at_height(None, 8, 16) == (8, 16)
    plain = systems.load_training(f"{configs('plain', {})}:digits")
    assert plain.facts == Facts() and plain.at_height(plain.experiment, 8, 16) is plain.experiment


def test_data_that_no_configuration_has(configs):
    configs("first", {})
    with pytest.raises(UserError, match="--data is mnist: configurations have digits, other"):
        systems.find_systems("mnist")
