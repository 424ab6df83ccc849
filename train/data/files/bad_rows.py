"""Rows that cannot be used: they stop the run, or are left out and counted."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from jaxllm.errors import UserError

from .row import Row

log = logging.getLogger("jaxllm")

Policy = Literal["stop", "skip"]
Made = TypeVar("Made")
Given = TypeVar("Given")


class BadRows:
    """Refuses rows that cannot be used, or skips and counts them.

    Args:
        policy: "stop" raises a UserError that names the file and the row; "skip" leaves them out.
    """

    def __init__(self, policy: Policy = "stop"):
        self.policy, self.rows, self.skipped, self.first = policy, 0, 0, ""

    def parsed(
        self, rows: Iterable[Row], convert: Callable[[Any], Made]
    ) -> Iterator[tuple[Row, Made]]:
        """Yields each row with what `convert` makes of its value."""
        for row in rows:
            self.rows += 1
            try:
                made = convert(row.parse(row.raw))
            except (ValueError, RecursionError) as error:
                self._leave_out(row, error)
            else:
                yield row, made

    def encoded(
        self,
        given: Iterable[tuple[Row, Given]],
        encode: Callable[[Sequence[Given]], Sequence[Made]],
        size: int,
    ) -> Iterator[tuple[Row, Made]]:
        """Yields what `encode` makes of each row's value, `size` of them at a time."""
        for batch in _batches(given, size):
            try:
                made = encode([value for _, value in batch])
            except ValueError:  # find out which
                for row, value in batch:
                    try:
                        (alone,) = encode([value])
                    except ValueError as error:
                        self._leave_out(row, error)
                    else:
                        yield row, alone
            else:
                yield from zip([row for row, _ in batch], made, strict=True)

    def report(self) -> None:
        """Logs how many rows were left out, if any were."""
        if self.skipped:
            log.warning(
                "skipped %s of %s rows; the first: %s",
                f"{self.skipped:,}",
                f"{self.rows:,}",
                self.first,
            )

    def _leave_out(self, row: Row, error: BaseException) -> None:
        explained = row.explain(error)
        if self.policy == "stop":
            raise UserError(f"{explained}; data.bad_rows=skip leaves such rows out") from error
        self.skipped += 1
        self.first = self.first or str(explained)


def _batches(given: Iterable[Made], size: int) -> Iterator[Sequence[Made]]:
    batch: list[Made] = []
    for each in given:
        batch.append(each)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
