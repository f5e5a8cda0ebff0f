"""Errors raised while loading models or data; every message says what to do."""


class ModelError(RuntimeError):
    """A model cannot be fetched or loaded here; the message says why and what to do."""


class UnknownModelError(ModelError):
    """The name is neither registered nor a folder."""


class HubError(ModelError):
    """The hub cannot be reached, or the repository is missing, or its download broke off."""


class GatedModelError(HubError):
    """The repository needs an accepted licence and a token."""


class ModelFilesError(ModelError):
    """A file is missing, cut short or damaged."""


class PrecisionError(ModelError):
    """The device cannot compute in this precision."""


class NotEnoughMemoryError(ModelError):
    """The weights do not fit into what is free."""


class DataError(RuntimeError):
    """A data set cannot be fetched or read; the message says what, where, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; libraries write many."""
    return (str(error).strip() or "no reason given").splitlines()[0]


def in_short(error: BaseException) -> str:
    """The kind of an error and its first line, to be quoted in another message."""
    return f"{type(error).__name__}: {first_line(error)}"
