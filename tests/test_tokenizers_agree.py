"""A run and the frozen runs that read its texts make the same tokens of them: when it is begun, resumed and loaded."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import mistake
from contract_cases import SYSTEMS

import jgen
from jgen.cli import import_config
from jgen.data.clip_text import END, START, ClipTokenizer
from jgen.data.text import Tokenizer, load_tokenizers, save_tokenizers
from jgen.runs import FrozenRun, check_tokenizers

BYTES, MERGED = Tokenizer(12), Tokenizer(12, ((68, 69), (70, 71)))
PUBLISHED = ClipTokenizer(12, ("a", START, END), ())


@pytest.mark.parametrize(
    "theirs,words",
    [
        (Tokenizer(12, ((68, 69), (70, 72))), ["2 merges here, 2 there, which differ from merge 1 on"]),
        (Tokenizer(12, ((68, 69),)), ["2 merges here, 1 there;"]),
        (BYTES, ["2 merges here, 0 there"]),
        (Tokenizer(9, MERGED.merges), ["12 tokens here and 9 there"]),
        (PUBLISHED, ["CLIP's published kind"]),
    ],
)
def test_tokenizers_that_differ_are_one_line(theirs, words):
    def check(tokenizers):
        check_tokenizers(tokenizers, {"text_encoder": FrozenRun(None, None, "", {}, "runs/clip", {"text": theirs})})

    mistake(lambda: check({"text": MERGED}), "frozen text_encoder, runs/clip, reads text by another tokenizer", *words)
    check({"text": theirs})
    check({"caption": MERGED})  # another field
    check({})


def test_padding_of_published_tokenizers_counts():
    other = dataclasses.replace(PUBLISHED, padding=("a",))
    run = FrozenRun(None, None, "", {}, "runs/clip", {"text": other})
    mistake(lambda: check_tokenizers({"text": PUBLISHED}, {"text_encoder": run}), "vocabularies or their padding")


def experiment(system, tmp_path, **frozen):
    """Of a tiny system on captions with two merges."""
    made = import_config(SYSTEMS[system]).get_config("tiny")
    data = dataclasses.replace(made.data, name="", tokenizer="bpe", vocabulary=261, text_length=12, validation=0.0)
    train = dataclasses.replace(made.train, steps=1, validate_every=0, sample_every=0, samples_per_class=1)
    train = dataclasses.replace(train, optimiser=dataclasses.replace(train.optimiser, warmup_steps=0))
    places = {role: str(tmp_path / name) for role, name in frozen.items()}
    return dataclasses.replace(made, data=data, train=train, frozen=places)


@pytest.mark.slow
def test_a_frozen_clip_of_other_captions_is_refused(cache, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    captions = {"of_a": ["aaaa bb"] * 20, "of_x": ["xxxx yy"] * 20}
    for name, texts in captions.items():
        jgen.fit(experiment("clip", tmp_path), tmp_path / name, images, text=texts)
    of_a, of_x = (load_tokenizers(tmp_path / name / "tokenizers.json")["text"] for name in captions)
    assert len(of_a.merges) == len(of_x.merges) == 2 and of_a != of_x
    on_x = experiment("text_diffusion", tmp_path, text_encoder="of_x")
    run, words = tmp_path / "run", ["frozen text_encoder", "reads text by another tokenizer", "from merge 0 on"]
    mistake(lambda: jgen.fit(on_x, run, images, text=captions["of_a"]), *words)
    assert not run.exists()
    on_a = experiment("text_diffusion", tmp_path, text_encoder="of_a")
    assert jgen.fit(on_a, run, images, text=captions["of_a"]) == "trained"
    assert jgen.load(run).sample(jax.random.key(0), 1, text="aa", steps=1).shape == (1, 32, 32, 3)
    # A tokenizer that changed, of the run itself and of the one that it depends on.
    own = load_tokenizers(run / "tokenizers.json")
    save_tokenizers(run / "tokenizers.json", {"text": of_x})
    changed = "tokenizers.json: the tokenizer of text is not the one that"
    mistake(lambda: jgen.fit(on_a, run, images, text=captions["of_a"]), changed)
    mistake(lambda: jgen.load(run), changed)
    save_tokenizers(run / "tokenizers.json", own)
    save_tokenizers(tmp_path / "of_a" / "tokenizers.json", {"text": of_x})
    mistake(lambda: jgen.load(run), changed)
    # The same weights, made to look as if they had been trained with another tokenizer.
    document = json.loads((tmp_path / "of_a" / "config.json").read_text())
    document["tokenizer_fingerprints"] = {"text": of_x.fingerprint}
    (tmp_path / "of_a" / "config.json").write_text(json.dumps(document))
    longer = dataclasses.replace(on_a, train=dataclasses.replace(on_a.train, steps=2))
    mistake(lambda: jgen.fit(longer, run, images, text=captions["of_a"]), *words)
    mistake(lambda: jgen.load(run), *words)
