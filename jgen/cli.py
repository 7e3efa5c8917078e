"""Shared by train.py and sample.py: loading configurations by path, one-line errors, the compilation cache."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import io
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jgen.distributed import Distributed, end_at_once, expected_platform, join_processes
from jgen.errors import UserError, exit_code, require
from jgen.experiment import Experiment

if TYPE_CHECKING:
    from jgen.core.trained import TrainedModel
    from jgen.generator import Generator

DEFAULT = "configs/diffusion/vdm.py:digits"


def load_config(name: str, root: Path) -> tuple[Experiment, str]:
    """The experiment that `configs/<family>/<system>.py[:variant]` names, and "<system>-<variant>".

    The path is looked up as given, then under `root`. The default variant is the file's first.

    Raises:
      UserError: no such file or variant, or a file that is not a configuration.
    """
    path_name, _, variant = name.partition(":")
    path = next((p for p in (Path(path_name), root / path_name) if p.is_file()), None)
    require(path is not None, f"there is no configuration {path_name}: `python train.py --list` shows them")
    assert path is not None
    module = import_config(path)
    variant = variant or next(iter(module.VARIANTS))
    known = ", ".join(module.VARIANTS)
    require(variant in module.VARIANTS, f"{path_name} has no variant {variant!r}: it has {known}")
    return module.get_config(variant), f"{path.stem}-{variant}"


def load_config_or_run(name: str, root: Path) -> tuple[Experiment, str]:
    """The experiment that `train.py NAME` trains and its run directory: NAME is a configuration, or a run to resume.

    Raises:
      UserError: as `load_config`, or a run whose config.json is damaged.
    """
    if (Path(name).expanduser() / "config.json").is_file():
        from jgen.runs import load_experiment

        return load_experiment(name)[0], name
    experiment, short = load_config(name, root)
    return experiment, f"runs/{short}"


def import_config(path: Path) -> Any:
    """Imports a configuration file. Raises `UserError` if it lacks VARIANTS or get_config."""
    module = import_file(path)
    is_config = hasattr(module, "VARIANTS") and hasattr(module, "get_config")
    require(is_config, f"{path} is no configuration: it must have VARIANTS and get_config(variant)")
    return module


def import_file(path: Path) -> Any:
    """Imports a Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"jgen_config_{path.stem}", path)
    require(spec is not None and spec.loader is not None, f"{path} is not a Python file")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def list_configs(root: Path, name: str = "") -> str:
    """Lists every system, by family, with its variants, one system a line; or the variants of the system `name`.

    Raises:
      UserError: a name that no system has.
    """
    paths = sorted((root / "configs").glob("*/*.py"))
    if name:
        chosen = [path for path in paths if name in (path.stem, str(path.relative_to(root)))]
        known = ", ".join(path.stem for path in paths)
        require(bool(chosen), f"--list {name}: there is no such system; the systems are {known}")
        rows = [
            (f"{path.relative_to(root)}:{variant}", line)
            for path in chosen
            for variant, line in import_config(path).VARIANTS.items()
        ]
    else:
        rows = [(str(path.relative_to(root)), ", ".join(import_config(path).VARIANTS)) for path in paths]
    width = max(len(place) for place, _ in rows)
    return "\n".join(f"{place:<{width}}  {line}" for place, line in rows)


@dataclasses.dataclass(frozen=True)
class EditOptions:
    """A picture to start from."""

    image: str = ""
    """Picture to edit, of the model's image size: all samples are edited versions of it, changed towards --text."""
    strength: float = 0.6
    """How much to change --image, above 0 and up to 1: the fraction of the sampler's steps that are run on it, or of
    the way from its CLIP embedding to that of --text."""
    mask: str = ""
    """Picture for inpainting: pixels of --image are kept where it is white, and drawn where it is black."""


def make_edit(gen: Generator, parsed: Any, background: str = "white") -> tuple[Any, dict[str, Any]]:
    """A sampler of edited versions of the given picture, and the values that identify its output; (None, {}) without a
    picture.

    Args:
      parsed: the command line with `sample_options`; background: the colour behind transparent pixels.
    Returns:
      (key, num, **options) -> [uint8 (num, H, W, C)], and {name: value} of everything that determines these images.
    Raises:
      UserError: pictures of another size, a mask without an image, a strength that has no effect.
    """
    import numpy as np

    from jgen.core.generate import require_capability
    from jgen.data.image_files import read_picture

    given, default = parsed.edit, parsed.edit.strength == EditOptions.strength
    if not given.image:
        require(not given.mask, f"--mask is {given.mask}: give --image, of which it tells what stays")
        require(default, f"--strength is {given.strength}: give --image, which is changed that much")
        return None, {}
    require(not given.mask or default, f"--strength is {given.strength}: with --mask, what is drawn is drawn anew")
    for name in ("cascade", "trajectory"):
        value = getattr(parsed.main, name)
        require(not value, f"--{name} is {value}: it is of what is drawn from noise alone, and not with --image")
    require_capability(gen.model, "inpaint" if given.mask else "edit")
    spec = gen.model.images
    require(spec.levels == 256, f"--image is {given.image}: the model's images have {spec.levels} levels, not 256")

    def read(option: str, place: str, channels: int) -> Any:
        path = Path(place).expanduser()
        require(path.is_file(), f"{option}: there is no file {path}")
        picture = read_picture(path, channels, background)
        size, wanted = ("x".join(map(str, shape[:2])) for shape in (picture.shape, spec.shape))
        require(size == wanted, f"{option}: {path} is {size}, and the model's images are {wanted}")
        return picture

    image = read("--image", given.image, spec.channels)[None]
    if not given.mask:
        own = {"strength": given.strength}
        return lambda key, num, **o: [gen.edit(key, np.repeat(image, num, 0), **own, **o)], {"image": image, **own}
    keep, dropped = read("--mask", given.mask, 1)[..., 0] > 127, unread_by_inpainting(gen, parsed)

    def inpaint(key: Any, num: int, **named: Any) -> list[Any]:
        read = {name: value for name, value in named.items() if name not in dropped}
        return [gen.inpaint(key, np.repeat(image, num, 0), keep, **read)]

    return inpaint, {"image": image, "mask": keep}


def unread_by_inpainting(gen: Generator, parsed: Any) -> set[str]:
    """The sampling options that `gen.inpaint` does not use. Raises `UserError` if one of them was given."""
    if gen.model.inpainting is None:
        return set()
    unread = vars(gen.model.sampling).keys() - vars(gen.model.inpainting).keys()
    for name in sorted(unread):
        value = getattr(parsed.sampling, name)
        same = value == getattr(gen.model.sampling, name)
        require(same, f"--{name.replace('_', '-')} is {value}: with --mask it would not be read")
    return unread


def sample_options(arguments: type, experiment: Any, data: Any, tokenizers: dict[str, Any]) -> type:
    """The dataclass of options for sampling a run: `arguments`, the fields of its data, its frozen runs and the options
    of its sampler."""
    import tyro

    unnamed = tyro.conf.arg(name="")
    fields: list[Any] = [("main", Annotated[arguments, unnamed], dataclasses.field(default=arguments()))]
    fields.append(("edit", Annotated[EditOptions, unnamed], dataclasses.field(default=EditOptions())))
    fields += condition_options(data, tokenizers)[0] + optional_texts(experiment, tokenizers)
    fields += frozen_option(experiment)
    sampling = getattr(experiment.model, "sampling", None)
    if sampling is not None:
        fields.append(("sampling", Annotated[type(sampling), unnamed], dataclasses.field(default=sampling)))
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def condition_options(data: Any, texts: Iterable[str]) -> tuple[list[Any], list[str]]:
    """Dataclass fields for the command-line options that set a run's conditions: --label 3, --text "...", and
    --cond.NAME FILE for any other array.

    Args:
      data: the run's DataSpec; texts: the fields that have a tokenizer.
    Returns:
      the dataclass fields; the names of those that are given as files.
    """
    import tyro

    options: list[Any] = []
    files: list[str] = []
    option: Any
    for name, spec in data.fields.items():
        if name in texts:
            option = Annotated[str | None, tyro.conf.arg(help="Text of all images.")]
        elif spec.is_class:
            names = f", or its name: {', '.join(spec.names[:20])}{', ...' * (len(spec.names) > 20)}" * bool(spec.names)
            help_text = f"Class of all images, 0 to {spec.num_values - 1}{names}; default: the classes in turn."
            kind: Any = str if spec.names else int
            option = Annotated[kind | None, tyro.conf.arg(help=help_text)]
        else:
            files.append(name)
            continue
        options.append((name, option, dataclasses.field(default=None)))
    if files:
        help_text = "File with the array, of one image or of all: .npy, or a picture such as .png for an image."
        path = Annotated[str, tyro.conf.arg(help=help_text)]
        entries = [(name, path, dataclasses.field(default="")) for name in files]
        cls = dataclasses.make_dataclass("Cond", entries, frozen=True)
        options.append(("cond", cls, dataclasses.field(default_factory=cls)))
    return options, files


# Further texts that a text-conditional diffusion model takes: see `GenerativeModel.optional`.
OPTIONAL_TEXTS = {
    "negative": "Text of what no image shows, where there is guidance.",
    "source": "Text of as many tokens whose image, of the same seed, each image stays near: prompt-to-prompt; of a"
    " dalle2_decoder what --image shows now.",
}


def optional_texts(experiment: Any, texts: Iterable[str]) -> list[Any]:
    """Command-line options --negative-text "..." and --source-text "...", as far as the model's Config names them in
    `optional_texts`."""
    import tyro

    model = experiment.model
    prefixes, own = getattr(model, "optional_texts", ()), getattr(model, "text", None)
    options: list[Any] = []
    for prefix in prefixes:
        option = Annotated[str | None, tyro.conf.arg(help=OPTIONAL_TEXTS[prefix])]
        options += [(f"{prefix}_{name}", option, dataclasses.field(default=None)) for name in texts if name == own]
    return options


def given_conditions(parsed: Any, data: Any, background: str = "white") -> dict[str, Any]:
    """The conditions given on a command line with `condition_options`, by field.

    Args:
      background: the colour behind transparent pixels of picture files.
    """
    names = [*data.fields, *(f"{prefix}_{name}" for name in data.fields for prefix in OPTIONAL_TEXTS)]
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name, None) is not None}
    paths = vars(parsed.cond) if hasattr(parsed, "cond") else {}
    for name, spec in data.fields.items():
        if spec.is_class and isinstance(value := given.get(name), str) and value not in spec.names:
            given[name] = int(value) if value.isdecimal() else value
    return given | {
        name: read_condition(Path(path).expanduser(), data.fields[name], background)
        for name, path in paths.items()
        if path
    }


def read_condition(path: Path, spec: Any, background: str = "white") -> Any:
    """The array in a .npy file or a picture file. Raises `UserError` for a file that cannot be read."""
    import numpy as np

    from jgen.data.image_files import extensions, read_picture

    is_picture = path.suffix.lower() in extensions()
    require(is_picture or path.suffix == ".npy", f"{path} must be a .npy file, or a picture such as a .png file")
    require(path.is_file(), f"there is no file {path}")
    if is_picture:
        require(len(spec.shape) == 3, f"{path} is an image: the condition must be an array {spec.shape}")
        return read_picture(path, spec.shape[2], background)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array: {error}") from error


def model_hash(gen: TrainedModel) -> str:
    """A hash of a loaded model's arrays and of those of the models that it depends on."""
    from jgen.core.model import FrozenModel
    from jgen.runs import fingerprint_of

    return fingerprint_of(FrozenModel(gen.params, gen.ctx.extra, gen.ctx.frozen))


def digest_of(given: dict[str, Any]) -> dict[str, str]:
    """{field: hash} of the given conditions (numbers, texts or arrays)."""
    import numpy as np

    arrays = {name: np.asarray(value) for name, value in given.items()}
    return {
        name: hashlib.sha256(f"{x.dtype} {x.shape}".encode() + x.tobytes()).hexdigest() for name, x in arrays.items()
    }


def frozen_option(experiment: Experiment) -> list[Any]:
    """Dataclass fields for the command line's --frozen.ROLE RUN; none for a run without frozen models."""
    import tyro

    from jgen.experiment import frozen_roles

    texts = {role: "Run directory; default: none." for role in frozen_roles(experiment.model)}
    texts |= dict.fromkeys(experiment.frozen, "Run directory, where it is neither where it was nor beside this one.")
    if not texts:
        return []
    roles = [
        (role, Annotated[str, tyro.conf.arg(help=text)], dataclasses.field(default="")) for role, text in texts.items()
    ]
    cls = dataclasses.make_dataclass("Frozen", roles, frozen=True)
    return [("frozen", cls, dataclasses.field(default_factory=cls))]


def given_frozen(parsed: Any) -> dict[str, str]:
    """{role: run directory} given on a command line with `frozen_option`."""
    return {role: place for role, place in vars(getattr(parsed, "frozen", Namespace())).items() if place}


def check_spelling(args: Sequence[str], options: Any, prefixes: Sequence[str]) -> None:
    """Raises `UserError` for an option spelt as in another command: --sampling.steps instead of --steps.

    Args:
      options: the dataclass with the options, or None for none; prefixes: those that other commands put before them.
    """
    names = {entry.name.replace("_", "-") for entry in dataclasses.fields(options)} if options is not None else set()
    for word in args:
        given = word.partition("=")[0]
        for prefix in prefixes:
            name = given.removeprefix(prefix).replace("_", "-")
            wrong = given.startswith(prefix) and name.removeprefix("no-") in names
            require(not wrong, f"there is no option {given} here: it is called --{name}")


def parse(cls: Any, args: Sequence[str], prog: str, description: str) -> Any:
    """Parses a command line into a dataclass with tyro; a mistake raises a one-line `UserError`.

    tyro's messages are only accessible as the box that it prints.
    """
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(cls, args=list(args), prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(one_line(captured.getvalue())) from None


def expanded(options: Any, names: Iterable[str]) -> Any:
    """A dataclass of options with ~ expanded to the home directory in the paths `names`."""
    return dataclasses.replace(options, **{name: os.path.expanduser(getattr(options, name)) for name in names})


def one_line(boxed: str) -> str:
    """The sentences of a tyro message, without its frame, title and references to --help."""
    rows = [re.sub(r"[│╭╮╰╯]|\x1b\[[0-9;]*m", "", row).strip() for row in boxed.splitlines()]
    message = []
    for row in rows[1:]:
        if set(row) <= set("─ "):
            break  # below the first rule are help texts
        message.append(row)
    sentence = " ".join(filter(None, message)) or " ".join(filter(None, rows))
    wrong = next((word for word in sentence.replace(",", " ").split() if word.startswith("--")), "")
    start = next((i for i, row in enumerate(rows) if row.startswith("Perhaps you meant")), len(rows))
    offered = [row.split()[0].rstrip(",") for row in rows[start:] if row.startswith("--")]
    near = difflib.get_close_matches(wrong, offered, n=1, cutoff=0.0)
    return f"{sentence} (did you mean {near[0]}?)" if near else sentence


def set_up_process(distributed: Distributed | None = None) -> None:
    """Enables the compilation cache, so that later starts are fast, and on CPU calls `keep_memory`.

    An unwritable cache is not an error.

    Args:
      distributed: the command's options for several processes; with None, this process joins others only if the
        variables `jgen.distributed.VARIABLES` are set.
    """
    if runs_on_cpu():
        keep_memory()
    import jax

    from jgen.data.sources import cache_dir

    options: Any = jax.config
    if not options.jax_compilation_cache_dir:  # the environment may set one
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    several = join_processes(distributed)
    try:
        start_backend(several)
    except UserError as error:
        if several:  # on exit, JAX would wait for the other processes, which wait for this one
            end_at_once(str(error), 2)
        raise


def start_backend(several: bool) -> None:
    """Starts JAX on its devices.

    Raises:
      UserError: the backend is not available; with several processes, also if JAX has fallen back to the CPU.
    """
    import jax

    try:
        jax.devices()
    except Exception as error:  # of several types, one of them with an empty message
        reason = " ".join(str(error).split()) or "it has no such backend here"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        where = f" on JAX_PLATFORMS={platforms}" if platforms else ""
        raise UserError(f"JAX does not start{where}: {reason}") from error
    wanted, actual = expected_platform(), jax.default_backend()
    fallen = f"JAX finds no {wanted} in process {jax.process_index()} of {jax.process_count()} and runs it on CPU"
    require(not several or actual == wanted or actual != "cpu", f"{fallen}; JAX_PLATFORMS=cpu has all run on CPU")


def runs_on_cpu() -> bool:
    """Whether JAX will run on CPU: it is told to, or has no plug-in for an accelerator. Does not start JAX."""
    return expected_platform() == "cpu"


def keep_memory() -> None:
    """Makes glibc keep freed memory, in huge pages, instead of returning a step's buffers and faulting them in again.

    Saves a fifth of a U-Net's training step on CPU. Call it before threads start. Without glibc it only turns off
    asynchronous dispatch.
    """
    import ctypes

    import jax

    # Programs then run on the calling thread: a thread of the runtime's own would allocate outside the heap.
    jax.config.update("jax_cpu_enable_async_dispatch", False)

    M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE, HUGE = -1, -4, 14, 1 << 21
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return
    assert libc is not None
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        libc.mallopt(parameter, value)
    # Marks the address space that the heap will grow into, before it is touched: it takes no memory yet.
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    start = libc.malloc(size)
    if start:
        aligned = -(-start // HUGE) * HUGE
        libc.madvise(aligned, start + size - aligned, MADV_HUGEPAGE)
        libc.free(start)


def main(command: Callable[[list[str]], int]) -> None:
    """Runs a command with the process's arguments; a `UserError` is one line on stderr and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character shows its code
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(exit_code(lambda: command(sys.argv[1:])))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has ended; leave nothing to be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
