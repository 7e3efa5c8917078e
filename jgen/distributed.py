"""Several processes that train, sample or score together, each with its own devices: joining them, and ending them.

Built on `jax.distributed`: this module tells it which processes take part, and turns its errors into one line.
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
HEARTBEAT = 30  # seconds without a heartbeat from a process after which the others end
BROKEN = 3  # exit code when another process has failed
ADVICE = "to go on from what is saved, start all of them again"


@dataclass(frozen=True)
class Distributed:
    """Several processes that work together; found automatically under SLURM, Open MPI, TPU pods and GKE."""

    coordinator: str = ""
    """HOST:PORT on which process 0 waits for the others; the same value for all."""
    num_processes: int = 0
    """Number of processes."""
    process_id: int = -1
    """Number of this process, from 0."""
    timeout: int = 300
    """Seconds to wait for the other processes."""


def join_processes(distributed: Distributed | None) -> bool:
    """Joins the processes that work together and returns whether there are any. They are given by the options, by the
    environment variables `VARIABLES`, or, for a command that has the options, by the cluster that started this process.

    If the others do not join in time, the process ends with one line and exit code 2.

    Raises:
      UserError: an option or a variable is missing or not a number, the others refuse, or one of them will run on
        another kind of device.
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
    # JAX ends a process that waited for too long with a stack trace, so it is told to wait for longer.
    message = f"joining as {where}: the others did not answer within {options.timeout} s"
    patience = threading.Timer(options.timeout, end_at_once, (message, 2))
    patience.daemon = True
    patience.start()
    waits: dict[str, Any] = {"initialization_timeout": options.timeout + 60, "heartbeat_timeout_seconds": HEARTBEAT}
    try:
        jax.distributed.initialize(**given, **waits)
        platforms = exchange_platforms(platform, options.timeout)
    except Exception as error:  # of several types, depending on what did not answer
        if isinstance(error, ValueError) and not given and on_tpu():
            return False  # a TPU that is not part of a pod
        raise UserError(
            f"joining as {where}: {(' '.join(str(error).split()) or type(error).__name__)[:200]}"
        ) from error
    finally:
        patience.cancel()
    require_one_platform(platforms)
    return True


def expected_platform() -> str:
    """The platform that JAX will run on, such as "cpu", "gpu" or "tpu": the one it is told to use, or has a plug-in
    for. Does not start JAX."""
    names = os.environ.get("JAX_PLATFORMS", "").split(",")
    if names == [""]:
        plugins = importlib.metadata.entry_points(group="jax_plugins")
        names = ["tpu"] if importlib.util.find_spec("libtpu") is not None else sorted(each.name for each in plugins)
    name = re.sub(r"^xla_|\d+$", "", names[0]) if names else "cpu"
    return "gpu" if name in ("cuda", "rocm") else name


def exchange_platforms(platform: str, timeout: int) -> dict[str, str]:
    """{host and process: platform} of all joined processes. All must call it, before JAX starts its devices: otherwise
    a process with a GPU would wait for minutes for the GPUs of a process without any."""
    from orbax.checkpoint import multihost

    client, folder = multihost.get_jax_distributed_client(), "jgen_platforms"
    client.key_value_set(f"{folder}/{socket.gethostname()}:{os.getpid()}", platform)
    client.wait_at_barrier(folder, 1000 * timeout)
    return {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get(folder)}


def require_one_platform(platforms: dict[str, str]) -> None:
    """Raises `UserError`, in every process, if they will run on different kinds of devices."""
    examples = {platform: process for process, platform in sorted(platforms.items(), reverse=True)}
    named = ", ".join(f"{platform} in {process}" for platform, process in sorted(examples.items()))
    require(len(examples) == 1, f"processes of several backends: {named}; JAX_PLATFORMS chooses one for all")


def given_processes(address: str, num: str, number: str, options: str) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`. Raises `UserError` if they are inconsistent.

    Args:
      options: the prefix of the option names in messages, or "" to name the environment variables.
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
    """Whether this process was started together with others by a launcher that JAX detects: SLURM's srun, Open MPI's
    mpirun, an indexed job or a job set of Kubernetes (with the package kubernetes), or a TPU pod."""
    environment = os.environ
    in_slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys()
    in_pods = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    counts = (environment.get(name, "") for name in ("SLURM_NTASKS" if in_slurm else "", "OMPI_COMM_WORLD_SIZE"))
    several = any(count.isdecimal() and int(count) > 1 for count in counts)
    pods = in_pods and importlib.util.find_spec("kubernetes") is not None
    return several or pods or on_tpu()


def on_tpu() -> bool:
    """Whether JAX will run on a TPU. Does not start JAX."""
    return importlib.util.find_spec("libtpu") is not None and os.environ.get("JAX_PLATFORMS", "tpu") == "tpu"


# Filters what native code prints to stderr: JAX aborts a process whose peers are gone, and prints a page of text.
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
    """From here on, what JAX's native code prints when another process is gone is replaced by one line.

    A separate process does the filtering, since this process ends with the message; Python's own stderr is unchanged.
    """
    real = os.dup(2)
    sys.stderr = os.fdopen(real, "w", buffering=1, errors="backslashreplace")
    command = [sys.executable, "-S", "-c", f"MESSAGE = {GONE!r}\n{FILTER}"]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=real, start_new_session=True)
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()


def first_words(error: Exception) -> str:
    """The message of an error, on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


def end_at_once(message: str, code: int) -> None:
    """Ends the process with one line, without waiting for its threads."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


@contextmanager
def working_together() -> Iterator[None]:
    """Context manager for sampling and scoring: joined processes divide the images between them, and end together.

    Raises:
      UserError: the processes have different numbers of devices.
    """
    with leaving_at_once():
        parallel.require_equal_devices()
        with parallel.together():
            parallel.connect()
            yield
            parallel.wait_for_all("done")  # JAX does not allow a process to end minutes before another


@contextmanager
def leaving_at_once(*passing: type[Exception]) -> Iterator[None]:
    """Context manager for joint work of several processes: an error ends this process at once, without waiting for the
    others, which wait for it.

    Args:
      passing: exceptions that all processes raise at the same point, and that are not errors.
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
            # When the first process ends, so do the others, which may have the same message to print; and if another
            # has ended, JAX may be about to end this one too.
            time.sleep(2)
        if mistake:
            end_at_once(str(error), 2)
        where = f"process {jax.process_index()} of {jax.process_count()}"
        end_at_once(f"another process may have ended: {where} broke off ({first_words(error)}); {ADVICE}", BROKEN)
