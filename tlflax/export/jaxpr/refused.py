"""What stops a translation."""


class Refused(Exception):
    """Says which operation of the model has no translation; `walk.translated` adds the fix."""
