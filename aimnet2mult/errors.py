"""The errors that this package raises on purpose; each carries one sentence with the remedy."""

from __future__ import annotations


class AIMNet2MultError(Exception):
    """Base of every error that the package raises on purpose."""


class ConfigError(AIMNet2MultError):
    """A setting in a YAML file, an override or a command line is wrong."""


class DataError(AIMNet2MultError):
    """A data file is missing, malformed or holds values that cannot be used."""


class ModelFileError(AIMNet2MultError):
    """A weights file or a compiled potential cannot be used."""


class InputError(AIMNet2MultError, ValueError):
    """A structure or an argument given to a potential or calculator is wrong."""


class TrainingError(AIMNet2MultError):
    """A training run cannot go on, for example because the loss is not finite."""
