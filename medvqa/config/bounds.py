"""Checks that the config groups share."""


def check(holds: bool, message: str) -> None:
    """Raise a `ValueError` with the message unless the condition holds."""
    if not holds:
        raise ValueError(message)


def positive(prefix: str, config: object, *names: str) -> None:
    """Raise a `ValueError` if a named field of the group is set and not above 0."""
    for name in names:
        value = getattr(config, name)
        check(value is None or value > 0, f"{prefix}.{name} must be above 0, got {value}")
