"""What can go wrong, as types.

SlidescreenError
├── UsageError      wrong options, settings or inputs: nothing was started (exit code 2)
├── ModelError      a model folder that cannot be trusted or used
├── OutputError     results cannot be written
├── ResultError     a stored result cannot be read
├── TrainingError   a training that cannot go on
└── SlideError      this slide cannot be screened; others go on (exit code 1)
    ├── OpenError   no reader opens the file
    ├── ScaleError  um/px missing, contradictory or outside the plausible range
    ├── ReadError   too much of the scan cannot be decoded
    └── AuditError  counts or areas of the result do not add up

Every message is one line: which file, what is wrong, what to do next.
"""


class SlidescreenError(Exception):
    """Base of every error that slidescreen raises on purpose."""


class UsageError(SlidescreenError):
    """The command, a setting or an input path is wrong; nothing was started."""


class ModelError(SlidescreenError):
    """A model folder is incomplete, altered, or not of a form that can be used safely."""


class OutputError(SlidescreenError):
    """Results cannot be written where they were asked for."""


class ResultError(SlidescreenError):
    """A stored result is incomplete, or of another version."""


class TrainingError(SlidescreenError):
    """A training that cannot go on; what it reached is kept."""


class SlideError(SlidescreenError):
    """One slide cannot be screened."""


class OpenError(SlideError):
    """No reader opens the file."""


class ScaleError(SlideError):
    """The um/px of level 0 is missing, contradictory or implausible."""


class ReadError(SlideError):
    """Too much of the scan cannot be decoded."""


class AuditError(SlideError):
    """Counts or areas of the result do not add up: a defect, and no result."""
