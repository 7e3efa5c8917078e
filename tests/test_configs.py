"""Every variant of every configuration makes a model of its data's images."""

import dataclasses
import re

import pytest
from contract_cases import ROOT, SYSTEMS, data_of, make_case

import jgen
from jgen.cli import import_config
from jgen.core.model import ArraySpec, DataSpec, ImageSpec
from jgen.data.transforms import added_fields
from jgen.errors import UserError
from jgen.experiment import Experiment, make_model
from jgen.train.config import check_config
from jgen.train.loop import role_optimisers

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
IMAGENET = {"imagenet_resized/64x64": (64, 64, 3), "imagenet2012": (256, 256, 3)}  # of 1,000 classes; some systems' own
VARIANTS = {stem: import_config(path).VARIANTS for stem, path in SYSTEMS.items()}


def get(system, variant):
    return import_config(SYSTEMS[system]).get_config(variant)


def spec_of(data):
    if data.name in ("shapes", "emoji", "fonts"):
        return data_of(data)
    if data.name.startswith("density:"):
        return DataSpec(ImageSpec(1, 2, 1, 256))
    if data.name.startswith("texture:"):
        return DataSpec(ImageSpec(data.size, data.size, 1, 256))
    levels = 17 if data.name == "digits" else 256
    image = ImageSpec(*{**SHAPES, **IMAGENET}[data.name], 2 if data.binarise != "none" else levels)
    label = ArraySpec((), "int32", 1000 if data.name in IMAGENET else 10)
    return DataSpec(image, {"label": label, **added_fields(data, image)})


@pytest.mark.parametrize("system,variant", [(s, v) for s, variants in VARIANTS.items() for v in variants])
def test_every_variant_makes_a_model_of_its_data(system, variant):
    experiment = get(system, variant)
    assert isinstance(experiment, Experiment)
    if variant in SHAPES:
        where = f"{SYSTEMS[system].relative_to(ROOT)}:{variant}"
        assert experiment.data.name == variant, (
            f"{where} must have Data(name={variant!r}): it has {experiment.data.name!r}"
        )
    check_config(experiment.train, 1)
    model = model_of(experiment, f"{system}:{variant}")
    assert model.data == spec_of(experiment.data) and model.name
    role_optimisers(model, experiment.train)


def model_of(experiment, name):
    """The model of an experiment, on those of the variants that train its frozen runs."""
    data, frozen = spec_of(experiment.data), {}
    for role, run in experiment.frozen.items():
        stem, _, variant = run.removeprefix("runs/").rpartition("-")
        assert stem in SYSTEMS, f"{name} depends on {run}: add configs/<family>/{stem}.py, which trains it"
        below = get(stem, variant)
        assert spec_of(below.data) == data
        frozen[role] = model_of(below, f"{stem}:{variant}")
    return make_model(experiment.model, data, frozen)


def test_systems_that_are_compared_see_the_same_images():
    """The classifier of the distances is trained on their training images: of other images it would be another."""
    for variant in SHAPES:
        data = {system: get(system, variant).data for system, variants in VARIANTS.items() if variant in variants}
        seen = {(d.name, d.validation, d.levels, d.binarise) for d in data.values()}
        assert len(data) > 5 and len(seen) == 1, (variant, seen)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_the_common_variants(system):
    of_its_own = SYSTEMS[system].parent.name == "text_to_image"  # texts and styles, which digits have not
    of_textures = "texture_error" in make_case(system).model.functions  # which digits are not
    common = (get(system, "tiny").data.name, "tiny") if of_its_own else ("digits", "mnist", "fashion_mnist", "tiny")
    common = ("brick", "grass", "gravel", "tiny") if of_textures else common
    missing = [name for name in common if name not in VARIANTS[system]]
    file = SYSTEMS[system].relative_to(ROOT)
    assert not missing, (
        f"add the variants {', '.join(missing)} to VARIANTS of {file}, each with a line, and to get_config"
    )
    for variant in common:  # all their levels, so that bits/dim compare
        assert (get(system, variant).data.levels, get(system, variant).data.binarise) == (0, "none")


def changed(config, path, field, value):
    """A configuration with one field of the part at `path` replaced."""
    if path in ([], [""]):
        return dataclasses.replace(config, **{field: value})
    return dataclasses.replace(config, **{path[0]: changed(getattr(config, path[0]), path[1:], field, value)})


@pytest.mark.parametrize(
    "part,field,value",
    [
        ("train", "steps", "10"),
        ("train", "steps", 2.5),
        ("train", "batch_size", None),
        ("data", "name", 3),
        ("data", "tokenizer", "words"),
        ("model.network", "architecture", "edm2"),
        ("model.network", "channels", [8]),
        ("model.network", "channels", (8, "8")),
        ("", "seed", 0.5),
        ("", "frozen", "runs/x"),
        ("", "frozen", {"autoencoder": 3}),
    ],
)
def test_wrong_types_from_a_program(cache, tmp_path, part, field, value):
    experiment = get("ddpm", "tiny")
    experiment = changed(experiment, part.split("."), field, value)
    data = spec_of(get("ddpm", "tiny").data)
    for call in (lambda: jgen.make(experiment, data), lambda: jgen.fit(experiment, tmp_path / "run")):
        with pytest.raises(UserError, match=f"^[^\n]*{re.escape(f'{field} is {value!r}: it must be')}[^\n]*$"):
            call()
    assert not (tmp_path / "run").exists()
