"""Features of a TFDS set as fields beside the image."""

import sys
import threading

import numpy as np
import pytest
from data.small_sets import everything, png, prepare

from jgen.core.model import ArraySpec
from jgen.data import dataset as datasets
from jgen.data.config import Config
from jgen.errors import UserError

NUM = 24
VALUES = {
    "label": lambda i: i % 3,
    "coarse": lambda i: i % 2,
    "caption": lambda i: f"picture {i} \u6f22",
    "attributes": lambda i: {"Smiling": i % 2 == 0, "Bald": i % 3 == 0, "Young": i % 5 == 0},
    "views": lambda i: {"left": i % 4, "right": i % 7},
    "bbox": lambda i: [0.25, i / 100, 0.5, 1.0],
    "mixed": lambda i: {"count": i, "weight": i / 2},
    "points": lambda i: {"nose_x": i, "nose_y": 2 * i},
    "weight": lambda i: i / 4,
    "number": lambda i: i - 5,
    "byte": lambda i: i,
    "flag": lambda i: i % 2 == 1,
    "matrix": lambda i: np.full((2, 3), i, np.int64),
    "double": lambda i: np.array([i, -i], np.float64),
    "flags": lambda i: np.array([i % 2, 0, 1], bool),
    "style": lambda i: np.full((2, 4, 3), i, np.uint8),
    "mask": lambda i: np.full((6, 8, 1), i % 4, np.uint8),
    "photo": lambda i: np.full((2 + i % 2, 4, 3), i, np.uint8),
    "boxes": lambda i: [[0.0, 0.0, 0.5, 0.5]] * (i % 3),
    "pair": lambda i: [i % 3, 2],
    "words": lambda i: ["a"] * (i % 2),
}


def connectors():
    from tensorflow_datasets import features as f

    return {
        "image": f.Image(shape=(6, 8, 3)),
        "label": f.ClassLabel(num_classes=3),
        "coarse": f.ClassLabel(num_classes=2),
        "caption": f.Text(),
        "attributes": {name: np.bool_ for name in ("Smiling", "Bald", "Young")},
        "views": {"right": f.ClassLabel(num_classes=7), "left": f.ClassLabel(num_classes=4)},
        "bbox": f.BBoxFeature(bbox_format=None),
        "mixed": {"count": np.int64, "weight": np.float32},
        "points": {"nose_x": np.int64, "nose_y": np.int64},
        "weight": np.float32,
        "number": np.int64,
        "byte": np.uint8,
        "flag": np.bool_,
        "matrix": f.Tensor(shape=(2, 3), dtype=np.int64),
        "double": f.Tensor(shape=(2,), dtype=np.float64),
        "flags": f.Tensor(shape=(3,), dtype=np.bool_),
        "style": f.Image(shape=(2, 4, 3)),
        "mask": f.LabeledImage(labels=4, shape=(6, 8, 1)),
        "photo": f.Image(shape=(None, None, 3)),
        "boxes": f.Sequence(f.BBoxFeature(bbox_format=None)),
        "pair": f.Sequence(f.ClassLabel(num_classes=3), length=2),
        "words": f.Sequence(f.Text()),
    }


def example(i):
    from tensorflow_datasets import features as f

    values = {name: value(i) for name, value in VALUES.items()}
    values["bbox"] = f.BBox(*values["bbox"])
    values["boxes"] = [f.BBox(*box) for box in values["boxes"]]
    for name in ("style", "mask", "photo"):
        values[name] = png(values[name])
    return {"image": png(np.full((6, 8, 3), i, np.uint8)), **values}


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """The folder of a set with features of every kind; example i has images of value i."""
    folder = tmp_path_factory.mktemp("rich")
    examples = {"train": [example(i) for i in range(NUM)], "test": [example(i) for i in range(4)]}
    prepare(folder, "rich", "1.0.0", connectors(), examples)
    return folder


def load(folder, *fields, **options):
    return datasets.load(Config(name="rich", dir=str(folder), fields=fields, **options))


def by_picture(dataset, field):
    """{value of the image: the field's array} over training and validation."""
    parts = [everything(dataset.splits[split]) for split in ("train", "validation")]
    return {int(image.max()): array for part in parts for image, array in zip(part["image"], part[field])}


KINDS = {
    "coarse": (ArraySpec((), "int32", 2), lambda i: i % 2),
    "attributes": (ArraySpec((3,), "bool", 2), lambda i: [i % 3 == 0, i % 2 == 0, i % 5 == 0]),
    "attributes.Smiling": (ArraySpec((), "bool", 2), lambda i: i % 2 == 0),
    "views": (ArraySpec((2,), "int32", 7), lambda i: [i % 4, i % 7]),
    "views.right": (ArraySpec((), "int32", 7), lambda i: i % 7),
    "mixed.weight": (ArraySpec((), "float32"), lambda i: i / 2),
    "points": (ArraySpec((2,), "int32"), lambda i: [i, 2 * i]),
    "bbox": (ArraySpec((4,), "float32"), lambda i: np.float32([0.25, i / 100, 0.5, 1.0])),
    "weight": (ArraySpec((), "float32"), lambda i: i / 4),
    "number": (ArraySpec((), "int32"), lambda i: i - 5),
    "byte": (ArraySpec((), "uint8"), lambda i: i),
    "flag": (ArraySpec((), "bool", 2), lambda i: i % 2 == 1),
    "matrix": (ArraySpec((2, 3), "int32"), lambda i: np.full((2, 3), i)),
    "double": (ArraySpec((2,), "float32"), lambda i: [i, -i]),
    "flags": (ArraySpec((3,), "bool", 2), lambda i: [i % 2, 0, 1]),
    "style": (ArraySpec((2, 4, 3), "uint8", 256), lambda i: np.full((2, 4, 3), i)),
    "mask": (ArraySpec((6, 8, 1), "uint8", 4), lambda i: np.full((6, 8, 1), i % 4)),
    "pair": (ArraySpec((2,), "int32", 3), lambda i: [i % 3, 2]),
}


@pytest.fixture(scope="module")
def with_all(rich, tmp_path_factory):
    """The set with a field of every kind, and the same streamed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        decoded = load(rich, *KINDS, "caption")
        patch.setattr(datasets, "memory_limit", lambda: 0)
        return decoded, load(rich, *KINDS, "caption")


@pytest.mark.parametrize("name", KINDS)
def test_a_feature_is_a_field_of_its_kind(with_all, name):
    spec, wanted = KINDS[name]
    for dataset in with_all:
        assert dataset.spec.fields[name] == spec
        arrays = by_picture(dataset, name)
        assert sorted(arrays) == list(range(NUM))
        for i, array in arrays.items():
            np.testing.assert_array_equal(array, wanted(i))
            assert array.dtype == spec.dtype and array.shape == spec.shape


def test_texts_are_tokens(with_all):
    for dataset in with_all:
        tokenizer = dataset.tokenizers["caption"]
        assert dataset.spec.fields["caption"] == ArraySpec((64,), "int32", 259)
        for i, tokens in by_picture(dataset, "caption").items():
            assert tokenizer.decode(tokens) == f"picture {i} \u6f22" and tokens.dtype == np.int32


def test_the_class_is_there_unasked_and_nothing_else_is(rich, own_cache):
    dataset = load(rich)
    assert dict(dataset.spec.fields) == {"label": ArraySpec((), "int32", 3)} and not dataset.tokenizers
    assert {i: int(label) for i, label in by_picture(dataset, "label").items()} == {i: i % 3 for i in range(NUM)}
    assert set(everything(dataset.splits["test"])) == {"image", "label", "index"}
    assert load(rich, "label").fingerprint == dataset.fingerprint  # also by name
    assert len(list(own_cache.glob("decoded/*"))) == 1


def test_a_set_has_a_cache_and_a_hash_for_its_fields(rich, own_cache, with_all):
    loaded = [load(rich), load(rich, "coarse"), load(rich, "number")]
    hashes = {dataset.fingerprint for dataset in [*loaded, *with_all]}
    assert len(hashes) == 5 and len(list(own_cache.glob("decoded/*"))) == 3
    names = {path.name for path in own_cache.glob("decoded/*/train/*.npy")}
    assert names == {"images.npy", "labels.npy", "field-coarse.npy", "field-number.npy"}
    image = everything(load(rich, "number").splits["train"])
    np.testing.assert_array_equal(image["number"], image["image"][:, 0, 0, 0].astype(int) - 5)


def test_a_field_that_is_damaged_is_decoded_anew(rich, own_cache):
    first = load(rich, "number")
    (path,) = own_cache.glob("decoded/*/train/field-number.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    assert load(rich, "number").fingerprint == first.fingerprint and path.read_bytes() == content


def test_features_that_are_no_fields_are_not_decoded(rich, own_cache, monkeypatch):
    from tensorflow_datasets import features as f

    shapes = []
    decode = f.Image.decode_example_np

    def count(self, data):
        shapes.append(self.shape)
        return decode(self, data)

    monkeypatch.setattr(f.Image, "decode_example_np", count)
    monkeypatch.setattr(f.BBoxFeature, "decode_example_np", lambda *args: pytest.fail("a box is decoded"))
    load(rich, "style", "attributes.Bald", "caption", tokenizer="bpe")
    assert set(shapes) == {(6, 8, 3), (2, 4, 3)}
    examples = NUM + 4
    assert shapes.count((6, 8, 3)) == examples + 2  # the first of each split twice: texts are read without images


@pytest.mark.parametrize(
    "name,message",
    [
        ("nothing", r"data.fields has 'nothing': data set 'rich' has attributes, attributes.Bald, .*, weight, words$"),
        ("attributes.Nose", r"data.fields has 'attributes.Nose': data set 'rich' has "),
        ("image", r"data.fields has 'image': data set 'rich' has "),
        ("photo", r"data.fields has 'photo', of shape \(None, None, 3\) and type .*: a field must have one shape"),
        ("boxes", r"data.fields has 'boxes', of shape \(None, 4\) and type .*: a field must have one shape"),
        ("words", r"data.fields has 'words', of shape \(None,\) and type .*: a field must have one shape"),
        ("mixed", r"data.fields has 'mixed', which is not of numbers of one type .*: name mixed.count, mixed.weight$"),
    ],
)
def test_a_feature_that_cannot_be_a_field_is_one_line(rich, own_cache, name, message):
    with pytest.raises(UserError, match=f"^{message}") as raised:
        load(rich, "coarse", name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options,name", [({"flip": True}, "data.flip"), ({"size": 4}, "data.size 4")])
def test_fields_with_places_in_the_image_are_refused_where_images_are_moved(rich, own_cache, options, name):
    for field in ("mask", "style", "bbox", "matrix", "points", "double"):
        with pytest.raises(UserError, match=f"^data.fields has '{field}', which may have places .*: with {name} it"):
            load(rich, "caption", field, **options)
    others = ("caption", "attributes", "flags", "pair", "weight")
    assert set(load(rich, *others, **options).spec.fields) == {"label", *others}


def test_integers_beyond_32_bits_are_refused(tmp_path, own_cache):
    from tensorflow_datasets import features as f

    examples = [{"image": png(np.zeros((2, 2, 1), np.uint8)), "id": 2**31 + i - 2} for i in range(4)]
    features = {"image": f.Image(shape=(2, 2, 1)), "id": np.int64}
    prepare(tmp_path / "sets", "rich", "1.0.0", features, {"train": examples})
    with pytest.raises(UserError, match=r"^data set 'rich' .* a 'id' has integers up to 214748364\d: they must"):
        load(tmp_path / "sets", "id")


def test_an_added_field_is_part_of_the_specification(rich, own_cache):
    dataset = load(rich, low_resolution=2, levels=4)
    assert dataset.spec.fields["low_resolution"] == ArraySpec((3, 4, 3), "uint8", 4)
    assert dataset.spec.image.levels == 4
    assert dataset.fingerprint == load(rich).fingerprint  # it is made on the device, not stored
    with pytest.raises(UserError, match="^data.low_resolution is 4: it must divide the images' sides, 6 and 8$"):
        load(rich, low_resolution=4)


def test_large_images_are_decoded_in_threads_in_order(tmp_path, own_cache, monkeypatch):
    from tensorflow_datasets import features as f

    examples = [{"image": png(np.full((80, 80, 3), i, np.uint8)), "number": i} for i in range(40)]
    prepare(
        tmp_path / "sets",
        "rich",
        "1.0.0",
        {"image": f.Image(shape=(80, 80, 3)), "number": np.int64},
        {"train": examples},
    )
    monkeypatch.setattr(datasets, "memory_limit", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    dataset = load(tmp_path / "sets", "number")
    threads = []
    decode = f.Image.decode_example_np

    def note(self, data):
        threads.append(threading.current_thread().name)
        return decode(self, data)

    monkeypatch.setattr(f.Image, "decode_example_np", note)
    train = dataset.splits["train"]
    positions = np.random.default_rng(0).permutation(train.num)
    batch = train.fetch(positions)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["number"])
    np.testing.assert_array_equal(batch["number"], everything(train)["number"][positions])
    assert threading.main_thread().name not in threads


def test_no_tensorflow_is_imported():
    assert sys.modules.get("tensorflow") is None
