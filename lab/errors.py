"""One error type per thing that a user can get wrong.

Each message is one line: what was found, what was expected, what to do. The command line prints it without a
traceback and exits with code 2; a library caller catches `UserError` or the precise type.
"""


class UserError(Exception):
    """Something that the user can mend."""


class ConfigError(UserError):
    """A config key, value or combination that cannot be meant."""


class DataError(UserError):
    """A corpus or token cache that is missing, empty, damaged or not the one asked for."""


class CheckpointError(UserError):
    """A checkpoint that is damaged or belongs to another config."""


class HeldError(UserError):
    """Another process holds the work."""


class PublishedDataError(UserError):
    """A published data file that is missing or lacks columns."""


class ResultsError(UserError):
    """Results that are missing or not of this experiment."""
