"""Specifications of data, for tests."""

from jgen.core.model import ArraySpec, DataSpec, ImageSpec


def data_of(height: int, width: int, channels: int, levels: int, num_classes: int = 0) -> DataSpec:
    """Images of that shape and number of levels, and the field `label` where there are classes."""
    fields = {"label": ArraySpec((), "int32", num_classes)} if num_classes else {}
    return DataSpec(ImageSpec(height, width, channels, levels), fields)
