"""Prepares a TFDS image set as ArrayRecord: `python -m jgen.data.prepare mnist [--dir DIR]`.

Downloads the set's source files and converts them; most sets need TensorFlow for that (`pip install 'jgen[prepare]'`).
Training afterwards needs neither TensorFlow nor the network.
"""

from __future__ import annotations

import argparse
import sys

from jgen.data.features import import_tfds
from jgen.data.tfds_sets import check_format, digits_builder, tfds_dir
from jgen.errors import UserError, exit_code


def prepare(name: str, folder: str) -> str:
    """Downloads and prepares a set; returns its location. Raises `UserError` if that fails."""
    tfds = import_tfds()
    if name == "digits":
        return str(digits_builder().data_dir)
    where = tfds_dir(folder)
    try:
        builder = tfds.builder(name, data_dir=str(where), file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        check_format(name, where, error)
        raise UserError(f"data set {name!r} is unknown to TFDS {tfds.__version__}") from error
    try:
        builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise UserError(f"preparing {name} needs TensorFlow: pip install 'jgen[prepare]' ({error})") from error
    except Exception as error:  # TFDS passes on any error of its sources and its network code
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"preparing {name} in {where} failed: {reason}") from error
    return str(builder.data_dir)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jgen.data.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="digits, mnist, fashion_mnist, cifar10, ... any TFDS image set")
    parser.add_argument("--dir", default="", help="TFDS data folder; default: TFDS_DATA_DIR or ~/tensorflow_datasets")
    args = parser.parse_args()
    return exit_code(lambda: print(f"{args.name} is prepared in {prepare(args.name, args.dir)}"))


if __name__ == "__main__":
    sys.exit(main())
