"""Text as CLIP's tokens (Radford et al. 2021, arXiv 2103.00020): byte pairs of lower-case words with an end marker.

A text is normalised (NFC, white space as one space, lower case) and split into words, single digits and runs of other
characters; no token crosses these. Ids are those of a published vocabulary, the same as transformers' `CLIPTokenizer`
gives. The padding token may also occur in a text: if "!" pads, a "!" in a text has the same id.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jgen.errors import UserError, require

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MIN_LENGTH = 3  # start, one token, end
KIND = "clip"


@dataclass(frozen=True)
class ClipTokenizer:
    """Text to `length` tokens, once for each padding token.

    vocabulary: the piece of each id.
    merges: pairs of pieces to merge, in order of priority.
    padding: the pieces to pad with, several if a model has two text encoders that pad differently.
    """

    length: int
    vocabulary: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    padding: tuple[str, ...] = (END,)

    @property
    def num_values(self) -> int:
        """Ids run from 0 to this - 1."""
        return len(self.vocabulary)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a text's tokens: (length,), or (paddings, length) if there are several."""
        return (self.length,) if len(self.padding) == 1 else (len(self.padding), self.length)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece: i for i, piece in enumerate(self.vocabulary)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the ids depend on."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def _libraries(self) -> list[Any]:
        return [make_library_tokenizer(self, padding) for padding in self.padding]

    def _ids(self, library: Any, text: str) -> list[int]:
        """All tokens of a text, without start, end, padding and truncation."""
        clean = text.encode("utf-8", "replace").decode()  # lone surrogates, invalid in UTF-8, become "?"
        return list(library.encode(clean, add_special_tokens=False).ids)

    def encode(self, text: str) -> np.ndarray:
        """int32 `shape`: start, the tokens of the text as far as they fit, end, padding."""
        tokens = np.empty((len(self.padding), self.length), np.int32)
        for row, padding, library in zip(tokens, self.padding, self._libraries):
            ids = [self.ids[START], *self._ids(library, text)[: self.length - 2], self.ids[END]]
            row[: len(ids)] = ids
            row[len(ids) :] = self.ids[padding]
        return tokens.reshape(self.shape)

    def left_out(self, text: str) -> str:
        """The part of a text that does not fit into `length` tokens, decoded from its tokens; "" if all fits."""
        library = self._libraries[0]
        return self._text(self._ids(library, text)[self.length - 2 :])

    def decode(self, ids: Any) -> str:
        """The normalised text of tokens (length,), up to the first end.

        Raises:
          UserError: an id that the tokenizer does not have.
        """
        numbers = np.asarray(ids).reshape(-1, self.length)[0].tolist()
        top = self.num_values - 1
        for i in numbers:
            require(0 <= i <= top, f"token {i} is not one of the tokenizer's 0 to {top}")
        end = numbers.index(self.ids[END]) if self.ids[END] in numbers else len(numbers)
        return self._text([i for i in numbers[:end] if i != self.ids[START]])

    def _text(self, ids: list[int]) -> str:
        return str(self._libraries[0].decode(ids, skip_special_tokens=False)).replace(END_OF_WORD, " ").strip()

    def to_json(self) -> str:
        sizes = {"kind": KIND, "length": self.length, "padding": self.padding}
        return json.dumps({**sizes, "vocabulary": self.vocabulary, "merges": self.merges})

    @classmethod
    def from_json(cls, text: str) -> ClipTokenizer:
        """The tokenizer that `to_json` wrote. Raises `UserError` for other text."""
        try:
            saved = json.loads(text)
            vocabulary, padding = tuple(map(str, saved["vocabulary"])), tuple(map(str, saved["padding"]))
            merges = tuple((str(left), str(right)) for left, right in saved["merges"])
            return checked(cls(int(saved["length"]), vocabulary, merges, padding))
        except (ValueError, KeyError, TypeError, UserError) as error:
            raise UserError(f"this is no tokenizer of CLIP: {error or type(error).__name__}") from error


def checked(tokenizer: ClipTokenizer) -> ClipTokenizer:
    """Returns the tokenizer. Raises `UserError` for one that cannot encode."""
    pieces, length = tokenizer.ids, tokenizer.length
    require(length >= MIN_LENGTH, f"its length is {length}: it must be {MIN_LENGTH} or more")
    require(len(pieces) == len(tokenizer.vocabulary), "two of its ids have the same piece")
    for piece in (START, END, *tokenizer.padding):
        require(piece in pieces, f"its vocabulary lacks {piece}")
    require(len(tokenizer.padding) > 0, "it has no padding")
    for left, right in tokenizer.merges:
        known = left in pieces and right in pieces and left + right in pieces
        require(known, f"its vocabulary lacks what it merges, {left!r} and {right!r}")
    return tokenizer


def make_library_tokenizer(tokenizer: ClipTokenizer, padding: str) -> Any:
    """The tokenizer of the library `tokenizers`, in which `padding` is always one token, also inside a text."""
    try:
        import tokenizers as library
    except ImportError as error:
        how = "pip install 'jgen[text]'"
        raise UserError(f"CLIP's tokens need tokenizers, which does not import here ({error}): {how}") from error
    suffixes = {"continuing_subword_prefix": "", "end_of_word_suffix": END_OF_WORD}
    model = library.models.BPE(tokenizer.ids, list(tokenizer.merges), unk_token=END, fuse_unk=False, **suffixes)
    made = library.Tokenizer(model)
    normal = library.normalizers
    white = normal.Replace(library.Regex(r"\s+"), " ")
    made.normalizer = normal.Sequence([normal.NFC(), white, normal.Lowercase()])
    words = library.pre_tokenizers.Split(library.Regex(WORDS), behavior="removed", invert=True)
    as_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = library.pre_tokenizers.Sequence([words, as_bytes])
    made.decoder = library.decoders.ByteLevel()
    made.add_special_tokens(list(dict.fromkeys([START, END, padding])))
    return made
