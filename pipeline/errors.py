"""Errors meant for the user: one line that names the key, file or tile at fault and what to do about it."""


class NtkError(Exception):
    """Something the user can mend; the command line prints it without a traceback."""

    exit_status = 1


class ConfigError(NtkError):
    """A config, an override or an option that cannot be meant."""

    exit_status = 2


class DataError(NtkError):
    """A data set that is missing, damaged or not what the kernels can use."""


class StoreError(NtkError):
    """A Gram store, tile, checkpoint or record that is damaged or belongs to another config."""


class Incomplete(NtkError):
    """Work that an earlier stage has still to do."""

    exit_status = 3
