"""Every exception that emdask raises on purpose.

::

    EmdaskError
    ├── ParameterError       (ValueError)    a parameter is unknown or out of range
    ├── UnknownMethodError   (LookupError)   no method of that name
    ├── StackError           (ValueError)    the images themselves do not fit
    ├── FormatError          (ValueError)    a file is not what it says it is
    ├── DeviceError          (RuntimeError)  the named device cannot be used
    └── MissingLibraryError  (ImportError)   an optional library is not installed

and `EmdaskWarning` (UserWarning): the result will hardly be what it seems to be.

A file that is absent raises Python's own ``FileNotFoundError`` and an output that exists
``FileExistsError``. One sentence form for all: *what: rule; got value. remedy.*
"""


class EmdaskError(Exception):
    """Base of every error that emdask raises on purpose."""


class ParameterError(EmdaskError, ValueError):
    """A parameter is unknown, of the wrong type, or out of range."""


class UnknownMethodError(EmdaskError, LookupError):
    """No method of that name is installed."""


class StackError(EmdaskError, ValueError):
    """The images do not fit what is asked of them: dimensions, sizes, NaN pixels."""


class FormatError(EmdaskError, ValueError):
    """A file is truncated, damaged, or not of the format that it claims."""


class DeviceError(EmdaskError, RuntimeError):
    """The device that was named is absent, or the method has no code for it."""


class MissingLibraryError(EmdaskError, ImportError):
    """An optional library is needed and not installed."""


class EmdaskWarning(UserWarning):
    """What was asked for can be done, but hardly means what it seems to."""
