"""What a user of laws can get wrong. One line each: what was found, what was expected, what to do."""

from __future__ import annotations


class LawsError(ValueError):
    """Something that the user can mend."""


class LawError(LawsError):
    """A law, or what it is given, that cannot be meant."""


class ObjectiveError(LawsError):
    """An objective that does not exist."""


class TableError(LawsError):
    """A file of measurements that is missing, or whose columns or values a law cannot read."""


class DataSetError(LawsError):
    """A named data set that is unknown, absent or not the published one."""
