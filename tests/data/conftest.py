"""Small prepared sets, and a cache of a test's own."""

import pytest
from data.small_sets import COUNTS, SHAPES, picture, png, prepare


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JGEN_CACHE", str(tmp_path / "own_cache"))
    return tmp_path / "own_cache"


@pytest.fixture(scope="package")
def prepared(tmp_path_factory):
    """Small sets as TFDS writes them: two of names that TFDS has code for, two with a validation split."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    for name, (version, shape) in SHAPES.items():
        binary = name == "binarized_mnist"  # without labels, as the published one
        features = {"image": tfds.features.Image(shape=shape)}
        features |= {} if binary else {"label": tfds.features.ClassLabel(num_classes=10)}
        examples = {
            split: [
                {"image": png(picture(shape, split, i, 2 if binary else 256))} | ({} if binary else {"label": i % 10})
                for i in range(count)
            ]
            for split, count in COUNTS[name].items()
        }
        prepare(folder, name, version, features, examples)
    return folder
