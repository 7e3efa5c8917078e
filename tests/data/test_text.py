"""Tokens of text: round trips, truncation, learning that does not depend on chance, and what a run stores."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from jgen.data.config import Config, check_config
from jgen.data.text import Tokenizer, load_tokenizers, save_tokenizers, train_bpe
from jgen.errors import UserError

WORDS = "a small red boat on a quiet sea under an orange sky caf\u00e9 na\u00efve \u6f22\u5b57 \U0001f600".split()
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 8)) for i in range(300)]
UNICODE = [
    "",
    "plain",
    " two  spaces\tand\nlines ",
    "\u00e9\u6f22\U0001f600\u0301",
    "<pad> <start> </s> [MASK]",
    "".join(map(chr, range(256))),
    "\u0000\ufeff\u202e\uffff\U0010ffff",
]


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request):
    return Tokenizer(800) if request.param == "bytes" else train_bpe(TEXTS, 300, 800)


@pytest.mark.parametrize("text", UNICODE + TEXTS[:3])
def test_any_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.shape == (800,) and tokens.dtype == np.int32
    assert tokens[0] == 1 and tokens.min() >= 0 and tokens.max() < tokenizer.num_values
    (end,) = np.flatnonzero(tokens == 2)
    assert np.all(tokens[1:end] >= 3) and np.all(tokens[end + 1 :] == 0)
    assert tokenizer.decode(tokens) == text


def test_bytes_are_the_ids_from_3_on():
    assert Tokenizer(8).num_values == 259
    assert Tokenizer(8).encode("A\u00e9").tolist() == [1, 3 + 65, 3 + 0xC3, 3 + 0xA9, 2, 0, 0, 0]


def test_a_long_text_is_cut_and_still_ends(tokenizer):
    short = Tokenizer(7, tokenizer.merges)
    tokens = short.encode(TEXTS[0])
    np.testing.assert_array_equal(tokens[:6], tokenizer.encode(TEXTS[0])[:6])
    assert tokens[6] == 2 and TEXTS[0].startswith(short.decode(tokens))
    exact = Tokenizer(7, tokenizer.merges).encode("01234")
    assert exact.tolist() == [1, *(3 + ord(digit) for digit in "01234"), 2]


def test_a_character_that_is_cut_in_its_middle_is_replaced():
    tokens = Tokenizer(5).encode("a\U0001f600")
    assert tokens.tolist() == [1, 3 + 97, 3 + 0xF0, 3 + 0x9F, 2]
    assert Tokenizer(5).decode(tokens) == "a\ufffd"


def test_what_utf8_does_not_have_becomes_a_question_mark(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_tokens_after_the_end_are_not_read_and_unknown_ones_are_refused():
    assert Tokenizer(4).decode([1, 100, 0, 101, 2, 102, 999]) == "ab"
    with pytest.raises(UserError, match="^token 259 is not one of the tokenizer's 0 to 258$"):
        Tokenizer(4).decode([1, 259])


def test_byte_pairs_make_texts_shorter_and_fill_the_vocabulary():
    tokenizer = train_bpe(TEXTS, 300, 800)
    assert tokenizer.num_values == 300
    lengths = [np.count_nonzero(each.encode(TEXTS[0])) for each in (tokenizer, Tokenizer(800))]
    assert lengths[0] < 0.7 * lengths[1]
    assert train_bpe(["ab"], 300, 8).num_values == 259  # pairs that stand together once only
    assert train_bpe(["ab ab"], 300, 8).merges == ((3 + 97, 3 + 98),)


def test_special_tokens_are_never_made_by_text():
    texts = ["<start> <end> <pad> <unk>"] * 50
    tokenizer = train_bpe(texts, 300, 30)
    tokens = tokenizer.encode(texts[0])
    assert np.count_nonzero(tokens == 1) == np.count_nonzero(tokens == 2) == 1
    assert tokenizer.decode(tokens) == texts[0]


def test_the_merges_of_a_pair_that_exists_already_make_no_new_id():
    a, b, c = (3 + ord(letter) for letter in "abc")
    tokenizer = Tokenizer(8, ((a, b), (259, c), (b, c), (a, 261)))  # ab, abc, bc, and abc again
    assert tokenizer.num_values == 262
    assert tokenizer.decode(tokenizer.encode("abc bc")) == "abc bc"


def test_byte_pairs_are_the_librarys_own():
    """This module's ids against those of the library's tokenizer as it was trained."""
    import tokenizers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400 - 3, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(TEXTS, trainer=trainer)
    trained.decoder = tokenizers.decoders.ByteLevel()
    ours = train_bpe(TEXTS, 400, 200)
    assert ours.num_values - 3 == trained.get_vocab_size()
    for text in TEXTS[:20] + UNICODE[:5]:
        tokens = ours.encode(text)
        pieces = [ours.decode([i]) for i in tokens[1:] if i > 2]
        wanted = [trained.decode([i]) for i in trained.encode(text).ids]
        assert pieces == wanted


def test_learning_does_not_depend_on_chance():
    program = "import sys, json; from jgen.data.text import train_bpe\n"
    program += "print(train_bpe(json.load(sys.stdin), 350, 16).to_json())"
    results = []
    for seed in ("1", "2"):
        options = {"input": json.dumps(TEXTS), "capture_output": True, "text": True, "check": True, "timeout": 120}
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        results.append(subprocess.run([sys.executable, "-c", program], env=environment, **options).stdout.strip())
    assert results[0] == results[1] == train_bpe(iter(TEXTS), 350, 16).to_json()


def test_a_tokenizer_is_what_its_json_says(tokenizer, tmp_path):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again == tokenizer and hash(again) == hash(tokenizer)
    np.testing.assert_array_equal(again.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))
    save_tokenizers(tmp_path / "run" / "tokenizer.json", {"text": tokenizer, "title": Tokenizer(5)})
    assert load_tokenizers(tmp_path / "run" / "tokenizer.json") == {"text": tokenizer, "title": Tokenizer(5)}
    assert load_tokenizers(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"length": 2, "merges": []}', '{"length": 9, "merges": [[5, 300]]}', '{"length": 9}']
)
def test_what_is_no_tokenizer_is_refused(text, tmp_path):
    with pytest.raises(UserError, match="^this is no tokenizer: ."):
        Tokenizer.from_json(text)
    (tmp_path / "tokenizer.json").write_text(f'{{"text": {text}}}')
    with pytest.raises(UserError, match=r"tokenizer\.json holds no tokenizers: "):
        load_tokenizers(tmp_path / "tokenizer.json")


def test_byte_pairs_need_the_library_and_bytes_do_not(monkeypatch):
    trained = train_bpe(TEXTS, 300, 200)
    tokens = trained.encode(TEXTS[0])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    fresh = Tokenizer.from_json(trained.to_json())
    for use in (lambda: train_bpe(TEXTS, 300, 8), lambda: fresh.encode("a")):
        with pytest.raises(UserError, match=r"^data.tokenizer bpe needs tokenizers, .*pip install 'jgen\[text\]'"):
            use()
    assert fresh.decode(tokens) == TEXTS[0]
    assert Tokenizer(8).decode(Tokenizer(8).encode("a")) == "a"


@pytest.mark.parametrize(
    "options,message",
    [
        ({"vocabulary": 258}, "data.vocabulary is 258: it must be at least 259"),
        ({"text_length": 2}, "data.text_length is 2: it must be at least 3"),
    ],
)
def test_options_out_of_their_range_are_refused(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check_config(Config(**options))
