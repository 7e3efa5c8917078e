"""The records that every part of jgen speaks in: models, per-example keys, devices."""
