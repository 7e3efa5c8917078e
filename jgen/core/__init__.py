"""The interfaces that all parts of jgen share: models, per-example keys, devices."""
