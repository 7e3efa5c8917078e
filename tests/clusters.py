"""Several processes that work together, for tests: programs, or threads that stand for them."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jax.experimental import multihost_utils

from jgen.core import parallel
from jgen.errors import UserError


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start_each(start_python, words, num=2, devices=1, of_one=()):
    """So many processes of one program; `of_one`: options of the second alone."""
    words = [*words, "--distributed.coordinator", f"127.0.0.1:{free_port()}", "--distributed.num-processes", str(num)]
    return [
        start_python(*words, "--distributed.process-id", str(i), *(of_one if i == 1 else ()), devices=devices)
        for i in range(num)
    ]


def wait_for(processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, outputs)]


def wait_for_file(path, processes):
    """Returns when there is something in a file that running processes write."""
    while not (path.is_file() and path.stat().st_size):
        assert all(process.poll() is None for process in processes), wait_for(processes)
        time.sleep(0.05)


def assert_ended_by_another(process):
    """It ends within a minute, with one line."""
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0 and len(lines) == 1 and "another process" in lines[0], errors
    assert "Traceback" not in errors and "stack trace" not in errors


def in_threads(monkeypatch, num, task):
    """[the result of task(), or the `UserError` that it raised], of so many threads that stand for processes."""
    barrier, sent, own = threading.Barrier(num), [None] * num, threading.local()

    def exchange(x):
        sent[own.number] = np.asarray(x)
        barrier.wait(60)
        received = [*sent]
        barrier.wait(60)
        assert len({(each.shape, each.dtype) for each in received}) == 1, "not in step"
        return received

    def gather(x, tiled=False):
        return np.concatenate(exchange(x)) if tiled else np.stack(exchange(x))

    def processes():
        return (own.number, num) if parallel._together.get() else (0, 1)

    def work(number):
        own.number = number
        try:
            with parallel.together():
                return task()
        except UserError as error:
            return error
        except BaseException:
            barrier.abort()
            raise

    with monkeypatch.context() as patch, ThreadPoolExecutor(num) as pool:
        patch.setattr(multihost_utils, "process_allgather", gather)
        patch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: exchange(x)[0])
        patch.setattr(parallel, "processes", processes)
        return list(pool.map(work, range(num)))
