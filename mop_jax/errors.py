"""The package's refusals: one clear sentence each, sorted by whose turn it is to act.

`mop` ends with exit status 2 for a `DataError` (change the command, the configuration or the data)
and 1 for a `FaultError` (a checkpoint, a disk or a computation failed).
"""


class MopError(Exception):
    """Base of every refusal of mop-jax; its message is one sentence fit to show a user."""

    exit_status = 1


class DataError(MopError, ValueError):
    """The usage or the data is at fault: names the file, row or field and what is accepted."""

    exit_status = 2


class FaultError(MopError, RuntimeError):
    """A checkpoint, the disk or a computation is at fault: names the tensor, file or step."""

    exit_status = 1


class DeviceFullError(FaultError):
    """A device's memory does not hold the least that a step needs at a time."""


class NotFiniteError(FaultError):
    """The language model gave a log-probability that is not finite.

    Attributes:
        pair: index of the (prompt, response) pair in what was to be scored.
    """

    def __init__(self, pair: int, name: str | None = None):
        """The sentence names the record where the caller knows it."""
        self.pair = pair
        super().__init__(
            "The language model gave a log-probability that is not finite for "
            f"{f'pair {pair}' if name is None else name}."
        )
