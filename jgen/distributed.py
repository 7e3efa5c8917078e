"""Several processes that train, sample or score together, each with its own devices: how they find each other, and how
they end.

Built on `jax.distributed`: this tells it which processes take part, and turns its errors into one line.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jgen.core import parallel
from jgen.errors import UserError, require

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = 30  # seconds without a sign of life from a process after which the others end
BROKEN = 3  # exit code where work with others broke off
ADVICE = "to go on from what is saved, start all of them again"


@dataclass(frozen=True)
class Distributed:
    """Several processes that work together; SLURM, Open MPI, TPU pods and GKE tell these by themselves."""

    coordinator: str = ""
    """HOST:PORT on which the first process, number 0, waits for the others: the same for all."""
    num_processes: int = 0
    """Number of processes."""
    process_id: int = -1
    """Number of this process, from 0."""
    timeout: int = 300
    """Seconds to wait for the other processes."""


def join_processes(distributed: Distributed | None) -> bool:
    """Joins the processes that work together: those of the options, or of the variables `VARIABLES`, or, for a command
    that has the options, those of the cluster that this process was started in. Returns whether there are any.

    Where the others do not come in time, the process ends with one line and exit code 2.

    Raises:
      UserError: an option or a variable is missing or is no number, the others refuse, or one of them is going to run
        on another kind of device.
    """
    options = distributed or Distributed()
    require(options.timeout > 0, f"distributed.timeout is {options.timeout}: it must be above zero")
    given: dict[str, Any] = {}
    if options.coordinator or options.num_processes or options.process_id >= 0:
        numbers = (str(options.num_processes), str(options.process_id))
        given = given_processes(options.coordinator, *numbers, "--distributed.")
    elif os.environ.get(VARIABLES[0], ""):
        address, num, number = (os.environ.get(name, "") for name in VARIABLES)
        given = given_processes(address, num, number, "")
    elif distributed is None or not in_cluster():
        return False
    import jax

    platform = expected_platform()
    if platform == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = "the processes of this cluster"
    if given:
        where = "process {process_id} of {num_processes} at {coordinator_address}".format(**given)
    if given or not on_tpu():
        print(f"joining as {where}; waiting for the others for up to {options.timeout} s", file=sys.stderr)
    filter_native_errors()
    # JAX ends a process that waited for too long with a stack trace: it is told to wait for longer.
    message = f"joining as {where}: the others did not answer within {options.timeout} s"
    patience = threading.Timer(options.timeout, end_at_once, (message, 2))
    patience.daemon = True
    patience.start()
    waits: dict[str, Any] = {"initialization_timeout": options.timeout + 60, "heartbeat_timeout_seconds": HEARTBEAT}
    try:
        jax.distributed.initialize(**given, **waits)
        platforms = exchange_platforms(platform, options.timeout)
    except Exception as error:  # of several kinds, by what did not answer
        if isinstance(error, ValueError) and not given and on_tpu():
            return False  # a TPU that is no part of a pod
        raise UserError(
            f"joining as {where}: {(' '.join(str(error).split()) or type(error).__name__)[:200]}"
        ) from error
    finally:
        patience.cancel()
    require_one_platform(platforms)
    return True


def expected_platform() -> str:
    """What JAX is going to run on, such as "cpu", "gpu" or "tpu": what it is told to, or has a plug-in for. Does not
    start JAX."""
    names = os.environ.get("JAX_PLATFORMS", "").split(",")
    if names == [""]:
        plugins = importlib.metadata.entry_points(group="jax_plugins")
        names = ["tpu"] if importlib.util.find_spec("libtpu") is not None else sorted(each.name for each in plugins)
    name = re.sub(r"^xla_|\d+$", "", names[0]) if names else "cpu"
    return "gpu" if name in ("cuda", "rocm") else name


def exchange_platforms(platform: str, timeout: int) -> dict[str, str]:
    """{host and process: platform} of all processes that have joined. All must call it, before JAX starts its devices:
    one with a GPU would wait for minutes for the GPUs of one that has none."""
    from orbax.checkpoint import multihost

    client, folder = multihost.get_jax_distributed_client(), "jgen_platforms"
    client.key_value_set(f"{folder}/{socket.gethostname()}:{os.getpid()}", platform)
    client.wait_at_barrier(folder, 1000 * timeout)
    return {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get(folder)}


def require_one_platform(platforms: dict[str, str]) -> None:
    """Raises `UserError`, in every process, where they are going to run on several kinds of devices."""
    examples = {platform: process for process, platform in sorted(platforms.items(), reverse=True)}
    named = ", ".join(f"{platform} in {process}" for platform, process in sorted(examples.items()))
    require(len(examples) == 1, f"processes of several backends: {named}; JAX_PLATFORMS chooses one for all")


def given_processes(address: str, num: str, number: str, options: str) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`. Raises `UserError` for what does not fit together.

    Args:
      options: what the names of options begin with, or "" for those of the variables.
    """
    names = [options + name for name in ("coordinator", "num-processes", "process-id")] if options else VARIABLES
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdecimal(), f"{names[0]} is {address!r}: it must be HOST:PORT of the first process")
    for name, value in zip(names[1:], (num, number)):
        require(value.isdecimal(), f"{name} is {value!r}: with {names[0]} it must be a whole number")
    require(int(num) >= 1, f"{names[1]} is {num}: it must be above zero")
    require(int(number) < int(num), f"{names[2]} is {number}: it must be below {names[1]} = {num}, as it counts from 0")
    return {"coordinator_address": address, "num_processes": int(num), "process_id": int(number)}


def in_cluster() -> bool:
    """Whether this process was started with others by what JAX knows to ask: SLURM's srun, Open MPI's mpirun, an
    indexed job or a job set of Kubernetes (with the package kubernetes), or on a TPU, whose pods tell their workers."""
    environment = os.environ
    in_slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys()
    in_pods = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    counts = (environment.get(name, "") for name in ("SLURM_NTASKS" if in_slurm else "", "OMPI_COMM_WORLD_SIZE"))
    several = any(count.isdecimal() and int(count) > 1 for count in counts)
    pods = in_pods and importlib.util.find_spec("kubernetes") is not None
    return several or pods or on_tpu()


def on_tpu() -> bool:
    """Whether JAX is going to run on a TPU. Does not start JAX."""
    return importlib.util.find_spec("libtpu") is not None and os.environ.get("JAX_PLATFORMS", "tpu") == "tpu"


# Reads what native code prints to stderr. JAX ends a process whose peers are gone by an abort, with a page of text.
FILTER = r"""
import os, re, sys
gone, skipping, held = False, False, b""
while part := os.read(0, 65536):
    *lines, held = (held + part).split(b"\n")
    for line in lines:
        if b"JAX distributed service detected fatal errors" in line and not gone:
            gone = True
            print(MESSAGE, file=sys.stderr, flush=True)
        if re.match(rb"[IWEF]\d{4} ", line):
            skipping = re.search(rb"preemption_sync|coordination_service", line) is not None
        if not (gone or skipping or b"[Gloo] Rank" in line):
            os.write(2, line + b"\n")
"""
GONE = f"error: another process has ended: {ADVICE}"


def filter_native_errors() -> None:
    """From here on, one line stands for what JAX's native code prints when another process is gone.

    A process of its own reads what native code prints, since this one does not outlive it; Python's own stderr stays.
    """
    real = os.dup(2)
    sys.stderr = os.fdopen(real, "w", buffering=1, errors="backslashreplace")
    command = [sys.executable, "-S", "-c", f"MESSAGE = {GONE!r}\n{FILTER}"]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=real, start_new_session=True)
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()


def first_words(error: Exception) -> str:
    """What an error says, on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


def end_at_once(message: str, code: int) -> None:
    """Ends the process with one line, whatever its threads wait for."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


@contextmanager
def working_together() -> Iterator[None]:
    """Around sampling and scoring: processes that have joined divide the images between them, and end together.

    Raises:
      UserError: one of them has more devices than another.
    """
    with leaving_at_once():
        parallel.require_equal_devices()
        with parallel.together():
            parallel.connect()
            yield
            parallel.wait_for_all("done")  # JAX lets no process end minutes before another


@contextmanager
def leaving_at_once(*passing: type[Exception]) -> Iterator[None]:
    """Around what processes do together: an error ends this one at once, without waiting for those that wait for it.

    Args:
      passing: exceptions that all processes meet at the same point, and that are no errors.
    """
    import jax

    try:
        yield
    except passing:
        raise
    except KeyboardInterrupt:
        if jax.process_count() > 1:
            end_at_once("interrupted", 130)
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        mistake = isinstance(error, UserError)
        if jax.process_index() == 0 or not mistake:
            # With the first, the others end, who may have the same to say; and where another has ended, JAX may be
            # about to end this one too.
            time.sleep(2)
        if mistake:
            end_at_once(str(error), 2)
        where = f"process {jax.process_index()} of {jax.process_count()}"
        end_at_once(f"another process may have ended: {where} broke off ({first_words(error)}); {ADVICE}", BROKEN)
