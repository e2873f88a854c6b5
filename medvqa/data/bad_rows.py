"""What happens to a row that cannot be used: an error, or skipped, counted and listed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from medvqa.config.errors import UserError, about


@dataclass
class BadRows:
    """The unusable rows of one source.

    Attributes:
        limit: How many may be skipped (`data.max_bad_rows`); with 0 the first is an error.
        reasons: One per skipped row, naming file and row.
    """

    limit: int = 0
    reasons: list[str] = field(default_factory=list)

    @contextmanager
    def row(self, place: str = "") -> Iterator[None]:
        """Run the block that reads one row; skip the row if that raises and the limit allows.

        Args:
            place: What messages call the row.

        Raises:
            UserError: The row's own error if nothing may be skipped, or that too many were.
        """
        try:
            with about(place):
                yield
        except UserError as error:
            if self.limit == 0:
                raise
            self.reasons.append(str(error))
            if len(self.reasons) > self.limit:
                raise UserError(
                    f"more than data.max_bad_rows={self.limit} rows cannot be used; "
                    f"the last: {error}"
                ) from error
