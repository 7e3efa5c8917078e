"""A data set ready for training: disjoint splits of images and further fields, and a hash of the content.

Sets are decoded once into memory-mapped arrays. Sets that would not fit into half of the memory are streamed from their
records instead.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.core.model import ArraySpec, DataSpec
from jgen.data.arrays import GIVEN, Arrays, array_source, file_arrays
from jgen.data.cache import decoded, sync
from jgen.data.config import OF_FILES, Config, DataLocation, check_config, located
from jgen.data.emoji import emoji_source
from jgen.data.folders import folder_source
from jgen.data.fonts import font_source
from jgen.data.plane import plane_source
from jgen.data.shapes import shapes_source
from jgen.data.sources import Judge, Records, Source, Subjects, cache_dir
from jgen.data.style import SIBLINGS
from jgen.data.text import AnyTokenizer, Tokenizer, load_tokenizers, save_tokenizers, train_bpe
from jgen.data.textures import texture_source
from jgen.data.tfds_sets import digits_builder, prepared_builder, tfds_dir, tfds_source
from jgen.data.transforms import added_fields
from jgen.errors import UserError, require

STREAMED = "streamed-"  # prefix of a hash of a set's name, version and sizes rather than its content
MAX_EXAMPLES = 1 << 28  # per part, so that the indices of all parts fit into int32
# The first index of each part's examples.
OFFSETS = {"train": 0, "validation": MAX_EXAMPLES, "test": 2 * MAX_EXAMPLES}
SEEN = 64  # examples of a split that are checked for labels
BLOCK = 4096  # texts read at a time, to train a tokenizer
Cuts = dict[str, tuple[str, int, int]]  # {split: (part of the source, start, stop)}


class Split(NamedTuple):
    """A split of a data set.

    num:      the number of examples.
    fetch:    (positions 0 .. num - 1) -> {"image": uint8 (n, H, W, C), "index": int32 (n,), <field>: (n, ...)};
              `index` is unique within the set, and does not change when the set is split differently.
    streamed: whether `fetch` decodes records, rather than reading decoded arrays.
    """

    num: int
    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    streamed: bool = False


class Dataset(NamedTuple):
    """A data set.

    spec:        the specification of batches after `make_transform`: the images and all further fields.
    splits:      train, validation (if there is one) and test; their batches are before `make_transform`, and with
                 `Config.style` contain the siblings of each example.
    fingerprint: a hash of the content.
    tokenizers:  {text field: tokenizer}.
    judges:      {text field: function that scores whether images show their texts}; {} if images are quantised to fewer
                 levels than the set has, which its judges cannot read.
    subjects:    {text field: `Subjects`}, for fields whose texts name a class.
    """

    name: str
    spec: DataSpec
    splits: dict[str, Split]
    fingerprint: str
    tokenizers: Mapping[str, AnyTokenizer] = {}
    judges: Mapping[str, Judge] = {}
    subjects: Mapping[str, Subjects] = {}


def has_labels(dataset: Dataset, split: str) -> bool:
    """Whether the examples of a split have classes: some sets withhold those of the test split, and store -1."""
    if "label" not in dataset.spec.fields:
        return False
    part = dataset.splits[split]
    return bool(np.all(part.fetch(np.arange(min(part.num, SEEN)))["label"] >= 0))


def require_labels_of(dataset: Dataset, split: str, who: str) -> None:
    """Raises `UserError` if the examples of a split, which `who` needs the classes of, have none."""
    message = f"{split} of {dataset.name} has no labels (they are -1), and {who}"
    require("label" not in dataset.spec.fields or has_labels(dataset, split), message)


def memory_limit() -> int:
    """Bytes of decoded examples above which a set is streamed from its records: half of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def open_source(config: Config, arrays: Arrays | None = None) -> Source:
    """The source that `config.name` names, or a source of the given arrays.

    Raises:
      UserError: an unknown or unprepared set; a folder without images, with mixed sizes or a damaged picture.
    """
    if arrays is not None:
        return array_source(GIVEN, arrays, None, config)
    again = "give them again, jgen.fit(..., images=...), or name a file that holds them, --data.name npz:FILE"
    require(config.name != "", "data.name is empty: name the data, such as --data.name digits")
    require(config.name != GIVEN, f"the data are arrays that were given from Python: {again}")
    if config.name.startswith("npz:"):
        path = Path(config.name.removeprefix("npz:")).expanduser()
        test = file_arrays(Path(config.test.removeprefix("npz:")).expanduser()) if config.test else None
        return array_source(f"npz-{path.stem}", file_arrays(path), test, config)
    if config.name.startswith("folder:"):
        return folder_source(Path(config.name.removeprefix("folder:")).expanduser(), config)
    if config.name.startswith("texture:"):
        return texture_source(config.name.removeprefix("texture:"), config)
    if config.name.startswith("density:"):
        return plane_source(config.name.removeprefix("density:"), config)
    if config.name == "digits":
        return tfds_source(digits_builder(), config)
    if config.name == "shapes":
        return shapes_source(config)
    if config.name.partition(":")[0] == "fonts":
        return font_source(config)
    if config.name.partition(":")[0] == "emoji":
        return emoji_source(config)
    return tfds_source(prepared_builder(config.name, tfds_dir(config.dir)), config)


def load(config: Config, tokenizers: Mapping[str, AnyTokenizer] | None = None, arrays: Arrays | None = None) -> Dataset:
    """Opens, decodes on first use, and splits a data set.

    Args:
      tokenizers: {text field: tokenizer}, such as those stored in a run; the others are made according to `config`.
      arrays: a user's own images, instead of the set that `config` names.
    Raises:
      UserError: the options, the set, or the cache folder are invalid; the message is one line.
    """
    check_config(config)
    source = open_source(config, arrays) if arrays is not None else open_source(config)
    cuts = cut_splits({name: records.num for name, records in source.splits.items()}, config.validation)
    tokenizers = make_tokenizers(source, cuts["train"], config, tokenizers or {})
    source = tokenised(source, tokenizers)
    image = source.spec.image
    image = replace(image, levels=2 if config.binarise != "none" else config.levels or image.levels)
    added = added_fields(config, image)
    for name in added:
        option = name.removesuffix("_label")
        require(name not in source.spec.fields, f"data.fields has {name!r}, which data.{option} adds: use one of them")
    parts, fingerprint = opened(source)
    streamed = fingerprint.startswith(STREAMED)
    splits = {
        name: slice_split(parts[part], start, stop, OFFSETS[part])._replace(streamed=streamed)
        for name, (part, start, stop) in cuts.items()
    }
    if config.style:
        splits = {name: with_siblings(split, source.group) for name, split in splits.items()}
    spec = DataSpec(image, {**source.spec.fields, **added})
    judges = source.judges if image.levels == source.spec.image.levels else {}
    return Dataset(source.name, spec, splits, fingerprint, tokenizers, judges, source.subjects)


def opened(source: Source) -> tuple[dict[str, Records], str]:
    """The records of each part, decoded if they fit into memory, and the hash of the set.

    For a decoded set it is the hash of the content, so that a folder may move; for a streamed one, of the name, the
    version and the sizes.
    """
    specs = [ArraySpec(source.spec.image.shape, "uint8"), *source.spec.fields.values()]
    example = sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in specs)
    if example * sum(records.num for records in source.splits.values()) <= memory_limit():
        pairs = {name: decoded(source, name) for name in source.splits}
        hashes: list[Any] = [[name, digest] for name, (_, digest) in pairs.items()]
        return {name: records for name, (records, _) in pairs.items()}, json_hash(hashes)
    sizes = {name: records.num for name, records in source.splits.items()}
    identity = [source.content] if source.content else [source.name, source.version]
    hashes = [[*identity, source.spec.image.shape, sizes]]
    specs_of = sorted(source.spec.fields.items())
    further = {name: (spec.shape, spec.dtype, spec.num_values) for name, spec in specs_of if name != "label"}
    if further:
        hashes.append([further, source.tokens])
    return source.splits, STREAMED + json_hash(hashes)


def json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def alike(one: str, other: str) -> bool:
    """Whether two hashes may belong to the same data. Also true if they cannot be compared: one is of the content and
    the other of the name, or one is "", for converted weights whose data is unknown."""
    unknown = one == "" or other == ""
    return one == other or unknown or one.startswith(STREAMED) != other.startswith(STREAMED)


def reopen(
    config: Config,
    fingerprint: str,
    run: str | Path,
    tokenizers: Mapping[str, AnyTokenizer] | None = None,
    place: Config | DataLocation | None = None,
) -> tuple[Config, Dataset]:
    """Opens the data that a run was trained on: at the given location, or else the run's, or, if that folder of TFDS
    sets no longer exists, the one that the environment names.

    Args:
      fingerprint, tokenizers: those stored in the run.
      place: the current location; fields that are "" take the run's value.
    Raises:
      UserError: the data is missing or has changed. When a set changes, so do the splits: what is a test image now may
        have been a training image then.
    """
    moved = {name: getattr(place, name) for name in ("name", "dir", "test") if getattr(place, name, "")}
    config = located(replace(config, **moved))
    if config.dir and not Path(config.dir).is_dir() and "dir" not in moved:
        config = replace(config, dir="")
    try:
        dataset = load(config, tokenizers)
    except UserError as error:
        of_files = config.name == GIVEN or config.name.partition(":")[0] in OF_FILES
        how = ": --data.name names where it is now, and is taken where its content is the same" if of_files else ""
        raise UserError(f"{error}{how}") from error
    require(
        alike(dataset.fingerprint, fingerprint),
        f"{dataset.name} has changed since {run} was trained on it: its hash was {fingerprint[:12]}, is"
        f" {dataset.fingerprint[:12]}, so that images of its splits may have been trained on; restore the data",
    )
    return config, dataset


def cut_splits(sizes: Mapping[str, int], validation: float) -> Cuts:
    """Train, validation and test. Missing splits are cut from the end of train: a tenth for test, then validation.

    Args:
      sizes: {part of the source: number of examples}.
    Raises:
      UserError: parts that are too large for int32 indices, or nothing is left for training.
    """
    for name, num in sizes.items():
        require(num <= MAX_EXAMPLES, f"{name} has {num} examples: it must have at most {MAX_EXAMPLES}")
    stop = whole = sizes["train"]
    cuts = {name: (name, 0, num) for name, num in sizes.items() if name != "train"}
    if "test" not in sizes:
        cuts["test"] = ("train", stop := whole - max(1, whole // 10), whole)
    if "validation" not in sizes and validation > 0:
        end, stop = stop, stop - max(1, int(stop * validation))
        cuts["validation"] = ("train", stop, end)
    cuts["train"] = ("train", 0, stop)
    require(stop > 0, f"no training images are left: train has {whole}, and data.validation takes {validation}")
    ranges = sorted((start, end) for part, start, end in cuts.values() if part == "train")
    assert all(before[1] <= after[0] for before, after in zip(ranges, ranges[1:])), f"splits overlap: {cuts}"
    return cuts


def slice_split(records: Records, start: int, stop: int, offset: int) -> Split:
    """The records start .. stop - 1 as a split; their indices are start + offset .. stop - 1 + offset."""

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        where = np.asarray(positions) + start
        return {**records.fetch(where), "index": (where + offset).astype(np.int32)}

    return Split(stop - start, fetch)


def with_siblings(split: Split, group: int) -> Split:
    """The split, with the images of all examples in the same group added to each example: see `Source.group`."""

    def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
        numbers, places = np.unique(np.asarray(positions) // group, return_inverse=True)
        members = split.fetch((numbers[:, None] * group + np.arange(group)).ravel())["image"]
        groups = members.reshape(len(numbers), group, *members.shape[1:])
        return {**split.fetch(positions), SIBLINGS: groups[places.reshape(-1)]}

    return split._replace(fetch=fetch)


def make_tokenizers(
    source: Source, train: tuple[str, int, int], config: Config, given: Mapping[str, AnyTokenizer]
) -> dict[str, AnyTokenizer]:
    """A tokenizer for each text field: the given one, plain bytes, or byte pairs learned from the training split.

    Args:
      train: the part of the source that contains the training split, and the split's start and stop in it.
    """
    if config.tokenizer == "bytes":
        return {name: given.get(name) or Tokenizer(config.text_length) for name in source.texts}
    return {name: given.get(name) or trained_bpe(source, name, train, config) for name in source.texts}


def trained_bpe(source: Source, field: str, train: tuple[str, int, int], config: Config) -> AnyTokenizer:
    """Byte pairs learned from the texts of the training split, cached."""
    part, start, stop = train
    identity = json_hash([source.name, source.version, source.files, field, train, config.vocabulary])[:16]
    path = cache_dir() / "tokenizers" / f"{source.name}-{identity}.json"
    try:
        cached = load_tokenizers(path)
    except UserError:  # then it is trained again
        cached = {}
    if field not in cached:
        read = source.splits[part].texts
        assert read is not None, f"{source.name} has a text field without texts"
        blocks = (np.arange(i, min(i + BLOCK, stop)) for i in range(start, stop, BLOCK))
        texts = (text for block in blocks for text in read(field, block))
        cached = {field: train_bpe(texts, config.vocabulary, config.text_length)}
        save_tokenizers(path, cached)
        sync(path.parent)
    own = cached[field]
    assert isinstance(own, Tokenizer)
    return replace(own, length=config.text_length)


def tokenised(source: Source, tokenizers: Mapping[str, AnyTokenizer]) -> Source:
    """The source with its texts as fields of tokens, int32 (n, *shape)."""
    if not tokenizers:
        return source

    def tokenised_records(records: Records) -> Records:
        def fetch(positions: np.ndarray) -> dict[str, np.ndarray]:
            arrays = records.fetch(positions)
            tokens = {name: np.stack([each.encode(text) for text in arrays[name]]) for name, each in tokenizers.items()}
            return {**arrays, **tokens}

        return Records(records.num, fetch)

    fields = {name: ArraySpec(each.shape, "int32", each.num_values) for name, each in tokenizers.items()}
    splits = {name: tokenised_records(records) for name, records in source.splits.items()}
    tokens = json_hash({name: each.to_json() for name, each in tokenizers.items()})
    spec = DataSpec(source.spec.image, {**source.spec.fields, **fields})
    return source._replace(spec=spec, splits=splits, texts=(), tokens=tokens)
