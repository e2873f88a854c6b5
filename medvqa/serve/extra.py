"""What the extra `serve` brings, asked for before anything slow."""

from importlib import util

from medvqa.config.errors import UserError


def require(*packages: str) -> None:
    """Raise a `UserError` where a package is not installed."""
    missing = [package for package in packages if util.find_spec(package) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'medvqa[serve]'")
