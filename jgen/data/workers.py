"""Processes that prefetch and decode the batches of a streamed set, using Grain."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

from jgen.errors import UserError

Batch = dict[str, Any]


def decoded_by_workers(fetch: Callable[[int], Batch], start: int, stop: int, num: int) -> Generator[Batch, None, None]:
    """fetch(start), ..., fetch(stop - 1), in this order, computed by `num` processes.

    Args:
      fetch: step -> batch; it is pickled with everything that it references, and called in the processes.
    Raises:
      UserError: raised by `fetch` in a process, or the package grain is not installed.
    """
    grain = import_grain()

    def attempt(step: int) -> Batch | UserError:
        try:
            return fetch(step)
        except UserError as error:  # returned as a value, since Grain changes the types of exceptions
            return error

    # Worker i computes steps start + i, start + i + num, ...; a batch does not depend on the process that decodes it.
    steps = grain.MapDataset.range(start, stop).map(attempt)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    processes = grain.MultiprocessingOptions(num_workers=num, per_worker_buffer_size=1)
    stream = steps.to_iter_dataset(read)
    # Through pipes: Grain frees arrays in shared memory with its last reference to them, not with ours.
    options = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
    stream = grain.experimental.WithOptionsIterDataset(stream, options)
    batches = iter(stream.mp_prefetch(processes, worker_init_fn=prepare_worker))
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        batches.close()


def import_grain() -> Any:
    """The package grain. Raises `UserError` if it is not installed."""
    try:
        import grain
        import grain.experimental
        from absl import flags
    except ImportError as error:
        raise UserError("train.data_workers needs the package grain: pip install grain") from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which jgen's command line does not parse
    return grain


def prepare_worker(index: int, num: int) -> None:
    """Ignores Ctrl-C, which the training process handles, and ends when that process has ended, for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
