"""Text as tokens: its UTF-8 bytes, or byte-pair encoding (BPE), which merges frequent pairs.

Ids: 0 padding, 1 start, 2 end, 3 .. 258 the bytes 0 .. 255, then the results of the merges, in order (Sennrich, Haddow
& Birch 2016, arXiv:1508.07909, on bytes as in GPT-2). A text is first split into words, numbers and punctuation, and no
token crosses these.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jgen.core.files import written_whole
from jgen.core.tokens import END, PADDING, START
from jgen.core.trained import Tokenizer as AnyTokenizer
from jgen.data.clip_text import KIND, ClipTokenizer
from jgen.errors import UserError, require

FIRST_BYTE = 3
NUM_BYTES = FIRST_BYTE + 256  # ids of a tokenizer without merges
MIN_LENGTH = 3  # start, one token, end


@dataclass(frozen=True)
class Tokenizer:
    """Text to `length` tokens and back. These fields define it completely, so that a run can store it.

    length: tokens per text: start, the text as far as it fits, end, padding.
    merges: pairs of ids, each of which is merged into the next free id; () for plain bytes.
    """

    length: int
    merges: tuple[tuple[int, int], ...] = ()

    @property
    def num_values(self) -> int:
        """Ids run from 0 to this - 1."""
        return len(self._pieces)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a text's tokens."""
        return (self.length,)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the ids depend on."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of each id; b"" for padding, start and end."""
        return [b""] * FIRST_BYTE + join_pairs([bytes([i]) for i in range(256)], self.merges)

    @cached_property
    def _library(self) -> Any:
        return make_library_tokenizer(self.merges)

    def encode(self, text: str) -> np.ndarray:
        """int32 (length,): start, the tokens of the text as far as they fit, end, padding."""
        room = self.length - 2
        data = text.encode("utf-8", "replace")  # lone surrogates, invalid in UTF-8, become "?"
        if self.merges:
            ids = [i + FIRST_BYTE for i in self._library.encode(data.decode()).ids[:room]]
        else:
            ids = [byte + FIRST_BYTE for byte in data[:room]]
        tokens = np.full(self.length, PADDING, np.int32)
        tokens[: len(ids) + 2] = [START, *ids, END]
        return tokens

    def left_out(self, text: str) -> str:
        """The part of a text that does not fit into `length` tokens; "" if all fits."""
        encoded, whole = self.decode(self.encode(text)), text.encode("utf-8", "replace").decode()
        return whole[len(encoded) :]

    def decode(self, ids: Any) -> str:
        """The text of tokens, up to the first end. Truncated characters and invalid UTF-8 become U+FFFD.

        Raises:
          UserError: an id that the tokenizer does not have.
        """
        pieces = []
        for i in np.asarray(ids).tolist():
            require(0 <= i < self.num_values, f"token {i} is not one of the tokenizer's 0 to {self.num_values - 1}")
            if i == END:
                break
            pieces.append(self._pieces[i])
        return b"".join(pieces).decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"length": self.length, "merges": self.merges})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote. Raises `UserError` for other text."""
        try:
            saved = json.loads(text)
            tokenizer = cls(int(saved["length"]), tuple((int(left), int(right)) for left, right in saved["merges"]))
            legal = all(FIRST_BYTE <= i < tokenizer.num_values for pair in tokenizer.merges for i in pair)
            require(tokenizer.length >= MIN_LENGTH and legal, "its numbers are out of range")
        except (ValueError, KeyError, TypeError, IndexError, UserError) as error:
            raise UserError(f"this is no tokenizer: {error or type(error).__name__}") from error
        return tokenizer


def join_pairs(alphabet: list[Any], merges: Iterable[tuple[int, int]]) -> list[Any]:
    """The alphabet followed by the concatenation of each pair of ids; duplicates are added only once."""
    pieces, seen = list(alphabet), set(alphabet)
    for left, right in merges:
        piece = pieces[left - FIRST_BYTE] + pieces[right - FIRST_BYTE]
        if piece not in seen:
            pieces.append(piece)
            seen.add(piece)
    return pieces


def byte_characters() -> list[str]:
    """The character that represents each byte in the library's byte-level BPE: printable ones represent themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def import_tokenizers() -> Any:
    """The `tokenizers` module. Raises `UserError` if it is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        how = "pip install 'jgen[text]', or set --data.tokenizer bytes"
        raise UserError(f"data.tokenizer bpe needs tokenizers, which does not import here ({error}): {how}") from error
    return tokenizers


def make_library_tokenizer(merges: Iterable[tuple[int, int]]) -> Any:
    """The library's tokenizer with these merges; its ids are this module's ids minus `FIRST_BYTE`."""
    library = import_tokenizers()
    merges = tuple(merges)
    pieces = join_pairs(byte_characters(), merges)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    pairs = [(pieces[left - FIRST_BYTE], pieces[right - FIRST_BYTE]) for left, right in merges]
    tokenizer = library.Tokenizer(library.models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def train_bpe(texts: Iterable[str], vocabulary: int, length: int) -> Tokenizer:
    """Trains a tokenizer of at most `vocabulary` ids by merging the most frequent pairs in `texts`, deterministically.

    Pairs that occur only once are not merged, so that few texts give fewer ids.
    """
    library = import_tokenizers()
    characters = byte_characters()
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary - FIRST_BYTE, min_frequency=2, initial_alphabet=characters, show_progress=False
    )
    clean = (text.encode("utf-8", "replace").decode() for text in texts)
    trained.train_from_iterator(clean, trainer=trainer)
    ids = {character: FIRST_BYTE + byte for byte, character in enumerate(characters)}
    merges = []
    for pair in json.loads(trained.to_str())["model"]["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair  # older versions of the library write "a b"
        merges.append((ids[left], ids[right]))
        ids.setdefault(left + right, FIRST_BYTE + len(ids))
    return Tokenizer(length, tuple(merges))


def save_tokenizers(path: Path, tokenizers: Mapping[str, AnyTokenizer]) -> None:
    """Writes the tokenizers of a data set's fields to one JSON file. Raises `UserError` if that fails."""
    saved = {field: json.loads(tokenizer.to_json()) for field, tokenizer in sorted(tokenizers.items())}
    with written_whole(path) as aside, open(aside, "w") as file:
        file.write(json.dumps(saved) + "\n")
        file.flush()
        os.fsync(file.fileno())


def load_tokenizers(path: Path) -> dict[str, AnyTokenizer]:
    """{field: tokenizer} that `save_tokenizers` wrote; {} if there is no file. Raises `UserError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text())
        return {field: kind_of(each).from_json(json.dumps(each)) for field, each in saved.items()}
    except (OSError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{path} holds no tokenizers: {error}") from error


def kind_of(saved: Mapping[str, Any]) -> type[Tokenizer] | type[ClipTokenizer]:
    """The class of a saved tokenizer."""
    return ClipTokenizer if saved.get("kind") == KIND else Tokenizer
