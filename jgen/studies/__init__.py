"""Reproducibility studies, one command each: python -m jgen.studies.NAME."""
