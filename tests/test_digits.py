"""The README's default training, to its end: a classifier of real digits reads the samples."""

import jax
import numpy as np
import pytest

import jgen
from jgen.data import dataset
from jgen.data.config import Config
from jgen.data.pictures import to_display


def read_by_a_classifier(images: np.ndarray, labels: np.ndarray) -> float:
    """The part of `images` that a classifier trained on the real digits takes for the class they were asked for."""
    from sklearn.svm import SVC

    splits = dataset.load(Config(name="digits")).splits
    real = {name: split.fetch(np.arange(split.num)) for name, split in splits.items()}

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1) / 16.0

    seen = [np.concatenate([real[name][key] for name in ("train", "test")]) for key in ("image", "label")]
    classifier = SVC(gamma=0.001).fit(flat(seen[0]), seen[1])
    accuracy = classifier.score(flat(real["validation"]["image"]), real["validation"]["label"])
    assert accuracy > 0.97, f"the classifier itself reads {accuracy:.3f} of the digits it has not seen"
    return classifier.score(flat(images), labels)


@pytest.mark.slow
def test_the_default_training_makes_digits_of_the_class_asked_for(python, tmp_path):
    python("train.py", "--workdir", tmp_path / "run", timeout=900, XLA_FLAGS="")  # as a newcomer's machine does
    gen = jgen.load(tmp_path / "run")
    images = gen.sample(jax.random.key(11), 1000, batch_size=500)
    shown = to_display(images, gen.model.images.levels)
    recognised = read_by_a_classifier(shown, gen.labels(1000))
    print(f"{recognised:.3f} of 1,000 samples are read as the class asked for")
    assert recognised >= 0.95
    # Not one picture a class: samples differ about as much as the real digits do.
    by_class = shown.reshape(100, 10, -1).astype(np.float64)
    assert np.all(by_class.std(axis=0).mean(axis=-1) > 15)
    bits = gen.bits_per_dim(jax.random.key(0), images[:100], label=gen.labels(1000)[:100])
    assert 0 < bits.mean() < np.log2(gen.model.images.levels)
