"""Writes samples to a file or a folder batch by batch, to save memory, and resumes after an interruption.

A folder of PNGs records in `.samples.json` which samples they are and how many have been written. A grid or an .npz is
collected in a hidden folder next to it, which is removed once the file is complete. Of processes that draw together,
one writes.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jgen.core import parallel
from jgen.core.files import lock, written_whole
from jgen.core.model import ImageSpec
from jgen.data.pictures import check_out, to_display, write_images, write_png
from jgen.data.sources import map_in_threads
from jgen.errors import UserError

RECORD = ".samples.json"
Range = tuple[int, int]  # indices of images, the second excluded


class SampleStore:
    """Collects images start .. start + num - 1 for `out`: a grid (.png), an .npz, or a folder of PNGs.

    next: the index of the first image that remains to be drawn; above `start` if an earlier process with the same
      identity drew some. Of processes that draw together, the first reads it from the disk and sends it to the others.

    Args:
      images: their shape and levels.
      identity: everything that determines an image, such as the model's hash, the seed and the sampler's options.
    Raises:
      UserError: another suffix, a path that cannot be written, or another process that writes there.
    """

    def __init__(self, out: Path, num: int, start: int, images: ImageSpec, identity: dict[str, Any]):
        self.out, self.start, self.stop, self.levels = out, start, start + num, images.levels
        self.is_folder = not out.suffix
        self.folder = out if self.is_folder else out.with_name(f".{out.name}.partial")
        span = {} if self.is_folder else {"start": start, "num": num}
        self.identity = json.loads(json.dumps({**identity, **span}, default=str))
        self.images: np.memmap | None = None
        self._lock: IO[str] | None = None
        self.writes, self.done, self.next = parallel.is_main_process(), (start, start), start
        with parallel.failing_together():
            if self.writes:
                self._open(images)
        self.next = parallel.from_main(self.next)

    def _open(self, images: ImageSpec) -> None:
        """Takes the lock, and finds which of these images exist."""
        check_out(self.out)
        if not self.is_folder:
            self._lock = lock(self.folder, "is writing", "wait for it, or choose another --out")
        self.done = self._recorded()
        collected = self.folder / "images.npy"
        if self.done[1] == self.start and not self.is_folder:
            try:
                shape = (self.stop - self.start, *images.shape)
                np.lib.format.open_memmap(collected, "w+", np.uint8, shape).flush()
            except OSError as error:
                raise UserError(f"cannot write {collected}: {error.strerror or error}") from error
        self.images = None if self.is_folder else np.lib.format.open_memmap(collected, "r+")
        self.next = self._first_missing()

    def _recorded(self) -> Range:
        """The range of images with this identity on disk; empty if the record has another identity."""
        try:
            record = json.loads((self.folder / RECORD).read_text())
            first, stop = record["done"]
            if record["identity"] == self.identity and first <= self.start <= stop:
                return int(first), int(stop)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return self.start, self.start

    def _first_missing(self) -> int:
        if not self.is_folder:
            return self.done[1]
        numbers = range(self.start, min(self.stop, self.done[1]))
        there = min(self.stop, max(self.start, self.done[1]))
        return next((number for number in numbers if not self._file(number).is_file()), there)

    def _file(self, number: int) -> Path:
        return self.out / f"{number:06d}.png"

    def write(self, images: np.ndarray) -> None:
        """Writes the next images, uint8 (b, H, W, C), and records them once they are on the disk."""
        first, self.next = self.next, self.next + len(images)
        if not self.writes:
            return
        if self.images is None:
            shown = to_display(images, self.levels)
            map_in_threads(lambda i: write_png(self._file(first + i), shown[i]), range(len(images)))
        else:
            self.images[first - self.start : self.next - self.start] = images
            self.images.flush()
        self.done = (self.done[0], max(self.next, self.done[1]))
        with written_whole(self.folder / RECORD) as aside:
            aside.write_text(json.dumps({"identity": self.identity, "done": self.done}))

    def collect(self, batches: Callable[[int, int], Iterable[np.ndarray]]) -> None:
        """Draws and writes the remaining images: batches(index of the first image, number of images)."""
        left = self.stop - self.next
        if 0 < left < self.stop - self.start and self.writes:
            print(f"going on at image {self.next} of {self.out}", file=sys.stderr)
        try:
            for images in batches(self.next, left) if left else ():
                self.write(images)
        finally:
            if self.writes and self.done[0] == self.done[1]:  # nothing was drawn: there is nothing to resume
                self.drop()

    def drop(self) -> None:
        """Removes the collected part of a grid or an .npz."""
        self.images = None
        if not self.is_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, labels: np.ndarray | None, columns: int, names: Sequence[str] = ()) -> None:
        """Writes the grid or the .npz, as `write_images` does, and closes; a folder is already complete."""
        if self.images is not None:
            write_images(self.out, self.images, labels, self.levels, columns, self.start, names)
            self.drop()
        if self._lock is not None:
            self._lock.close()
