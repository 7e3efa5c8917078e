"""The order of training data as a pure function of (seed, step), and prefetching by a thread or by processes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any

import numpy as np

from jgen.data.dataset import Split
from jgen.data.workers import decoded_by_workers
from jgen.errors import require

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = 0x9E3779B97F4A7C15


def mix(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser (Steele, Lea & Flood 2014), elementwise on uint64: a fixed pseudo-random bijection."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num: int) -> np.ndarray:
    """A permutation of 0 .. num - 1 that depends only on the arguments, not on the version of NumPy."""
    stream = mix(np.array([(seed * _GOLDEN + epoch) % 2**64], np.uint64))
    return np.argsort(mix(np.arange(num, dtype=np.uint64) * np.uint64(_GOLDEN) + stream), kind="stable")


def batch_positions(seed: int, step: int, batch_size: int, num: int) -> np.ndarray:
    """Positions (batch_size,) of the examples of a step: every epoch visits each of `num` examples once.

    The cost does not depend on the step. A batch may contain the end of one epoch and the start of the next.
    """
    where = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, offsets = where // num, where % num
    positions = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        positions[chosen] = permutation(seed, int(epoch), num)[offsets[chosen]]
    return positions


def train_batches(
    split: Split,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    ahead: int = 2,
    rows: slice | np.ndarray | None = None,
    workers: int = 0,
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of steps start .. stop - 1, prefetched up to `ahead` steps in advance.

    Args:
      batch_size: of the global batch, on which the order of the data depends.
      rows: the rows of the global batch to fetch, as indices or a slice, for this process; None for all.
      workers: processes that decode a streamed split; 0: a thread, as for a split whose arrays are in memory.
    Yields:
      {"image": uint8 (B, H, W, C), "index": int32 (B,), <field>: (B, ...)} of the B rows.
    Raises:
      UserError: from the split, when a record cannot be read.
    """
    require(split.num > 0, "the training split is empty")

    def fetch(step: int) -> dict[str, np.ndarray]:
        positions = batch_positions(seed, step, batch_size, split.num)
        return split.fetch(positions if rows is None else positions[rows])

    if workers > 0 and split.streamed:
        return decoded_by_workers(fetch, start, stop, workers)
    return read_ahead(fetch, start, stop, ahead)


def read_ahead(
    fetch: Callable[[int], dict[str, np.ndarray]], start: int, stop: int, ahead: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """fetch(start), ..., fetch(stop - 1), called by one thread up to `ahead` calls in advance."""
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(item: Any) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start, stop):
                if closed.is_set():
                    return
                put(fetch(step))
        except Exception as error:
            put(error)

    thread = threading.Thread(target=work, name="jgen-batches", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
