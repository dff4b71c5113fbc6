"""How a run ends other than well: one line for a person, one exit code for a script.

    0   done
    1   a defect of the program (traceback)
    2   bad input: nothing was written
    3   too many steps in a row were not finite
    4   what the run keeps (checkpoints, metrics) cannot be read or written
    75  stopped by a signal; the same command continues (EX_TEMPFAIL)
"""


class Stop(RuntimeError):
    """Ends a run. The message is one line; `exit_code` is what the process returns."""

    exit_code = 1


class ConfigError(Stop, ValueError):
    """Bad input. The message names the key, the value and what is allowed."""

    exit_code = 2


class Diverged(Stop):
    """Too many steps in a row were not finite."""

    exit_code = 3


class StorageError(Stop):
    """Something the run keeps cannot be read or written."""

    exit_code = 4


class CheckpointError(StorageError):
    """A checkpoint cannot be written, or there are some and none can be read."""


class Interrupted(Stop):
    """A signal stopped the run; what it had is saved."""

    exit_code = 75
