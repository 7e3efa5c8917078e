"""Small sets of images for tests of the data, and how to look at all of a split."""

import io
import itertools

import numpy as np
from PIL import Image

SHAPES = {"mnist": ("3.0.1", (28, 28, 1)), "petite": ("1.0.0", (6, 8, 3)), "binarized_mnist": ("1.0.0", (28, 28, 1))}
COUNTS = {"mnist": {"train": 40, "test": 10}, "petite": {"train": 20, "validation": 5, "test": 7}}
COUNTS["binarized_mnist"] = {"train": 12, "validation": 4, "test": 4}


def picture(shape, split, i, levels=256):
    seed = [i, *split.encode()]
    return np.random.default_rng(seed).integers(0, levels, shape, np.uint8)


def png(array):
    """A file such as TFDS stores without TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG")
    file.seek(0)
    return file


def everything(split):
    return split.fetch(np.arange(split.num))


def all_indices(dataset):
    return np.concatenate([everything(split)["index"] for split in dataset.splits.values()])


def as_multiset(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))


def wanted_multiset(name, split):
    shape, count = SHAPES[name][1], COUNTS[name][split]
    return as_multiset([picture(shape, split, i) for i in range(count)], [i % 10 for i in range(count)])


def found_multiset(*splits):
    parts = [everything(split) for split in splits]
    return sorted(itertools.chain(*(as_multiset(part["image"], part["label"]) for part in parts)))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def prepare(folder, name, version, features, examples):
    """Prepares a TFDS set as ArrayRecord: `examples` is {split: [example, ...]}."""
    import tensorflow_datasets as tfds

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def generators(self, manager):
        return {split: self._generate_examples(split) for split in examples}

    def generate(self, split):
        yield from enumerate(examples[split])

    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():
        body = {"VERSION": tfds.core.Version(version), "_info": info, "_split_generators": generators}
        body |= {"_generate_examples": generate, "__doc__": "Small.", "__module__": __name__}
        cls = type("".join(map(str.title, name.split("_"))), (tfds.core.GeneratorBasedBuilder,), body)
        cls(data_dir=str(folder), file_format="array_record").download_and_prepare()
