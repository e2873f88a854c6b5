"""The gate before training: evaluation pictures and questions in the training pool."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.contamination import Contamination, ContaminationConfig
from medvqa.config.errors import UserError
from medvqa.contamination.overlap import Overlap, SetOverlap, find_overlap
from medvqa.data.example import Example
from medvqa.data.storage.cache import open_cache
from medvqa.tracking.record import write_json
from medvqa.tracking.terminal import console, table

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

SHOWN_MATCHES = 1000  # pairs in contamination.json; the counts are complete


def measure(
    config: ContaminationConfig, training: Sequence[Example], sets: Mapping[str, Sequence[Example]]
) -> Overlap:
    """Return the overlap of the pool and every evaluation set, with this user's cache of hashes."""
    with open_cache() as cache:
        return find_overlap(training, sets, cache, max_distance=config.max_distance)


def refusal(config: ContaminationConfig, overlap: Overlap) -> str | None:
    """Return in one line why the gate ends the run under `refuse`; None if it does not."""
    above = [reason for set_overlap in overlap.sets for reason in _above(config, set_overlap)]
    if not above:
        return None
    rows = f"{len(overlap.training_rows):,} of {overlap.num_training_rows:,} training rows"
    return (
        f"contamination: {'; '.join(above)}. Say contamination=drop to train without the {rows} "
        "concerned, contamination=report to go on, or choose another split or pool"
    )


def _above(config: ContaminationConfig, shares: SetOverlap) -> list[str]:
    where = f"data.evaluation.{shares.name}"
    reasons = []
    if shares.image_overlap > config.max_image_overlap:
        reasons.append(
            f"{shares.num_shared:,} of {shares.num_pictures:,} pictures of {where} occur in "
            f"training (contamination.max_image_overlap={config.max_image_overlap:g})"
        )
    if shares.item_overlap > config.max_item_overlap:
        reasons.append(
            f"{shares.num_items:,} of {shares.num_questions:,} questions of {where} occur in "
            "training with the same answer and picture "
            f"(contamination.max_item_overlap={config.max_item_overlap:g})"
        )
    return reasons


def allowed_rows(
    config: ContaminationConfig,
    training: Sequence[Example],
    overlap: Overlap,
    *,
    expected: bool,
) -> list[Example]:
    """Return the rows to train on.

    Args:
        config: What to do about an overlap.
        training: The pool.
        overlap: What `measure` returned.
        expected: The user has said that evaluation sets hold training rows, so nothing is refused.

    Raises:
        UserError: If the gate refuses, a picture cannot be read, or no row would be left.
    """
    if overlap.unreadable and config.action is not Contamination.report:
        raise UserError(
            f"{overlap.unreadable[0]} ({len(overlap.unreadable)} such picture(s)); mend it, or say "
            "contamination=report to go on without comparing it"
        )
    reason = refusal(config, overlap)
    if reason is not None and config.action is Contamination.refuse:
        if not expected:
            raise UserError(reason)
        log.warning("not refused, because of data.allow_training_rows=true: %s", reason)
    if config.action is not Contamination.drop:
        return list(training)
    retained = [example for example in training if example.id not in overlap.training_rows]
    if not retained:
        raise UserError("contamination=drop leaves no training row; choose another data=")
    log.info("contamination=drop: %s training rows left out", f"{len(training) - len(retained):,}")
    return retained


def headline(config: ContaminationConfig, overlap: Overlap) -> dict[str, Any]:
    """Return what run.json keeps; contamination.json has the rest."""
    dropped = config.action is Contamination.drop
    return {
        "action": config.action.value,
        "num_training_rows_concerned": len(overlap.training_rows),
        "num_dropped": len(overlap.training_rows) if dropped else 0,
        "sets": {
            set_overlap.name: {
                "image_overlap": set_overlap.image_overlap,
                "item_overlap": set_overlap.item_overlap,
                "num_shared_pictures": set_overlap.num_shared,
                "num_items": set_overlap.num_items,
            }
            for set_overlap in overlap.sets
        },
    }


def flat(overlap: Overlap) -> dict[str, float]:
    """Return `contamination/<set>/<share>` -> value, for a tracker."""
    return {
        f"contamination/{set_overlap.name}/{share}": getattr(set_overlap, share)
        for set_overlap in overlap.sets
        for share in ("image_overlap", "item_overlap")
    }


def as_json(config: ContaminationConfig, overlap: Overlap) -> dict[str, Any]:
    """Return what contamination.json holds; its lists of matches and errors may be cut."""
    values = asdict(overlap)
    shares = headline(config, overlap)["sets"]
    return {
        **headline(config, overlap),
        **values,
        "max_image_overlap": config.max_image_overlap,
        "max_item_overlap": config.max_item_overlap,
        "refusal": refusal(config, overlap),
        "sets": {
            set_overlap["name"]: {**set_overlap, **shares[set_overlap["name"]]}
            for set_overlap in values["sets"]
        },
        "num_unreadable": len(overlap.unreadable),
        "unreadable": list(overlap.unreadable[:SHOWN_MATCHES]),
        "num_matches": len(overlap.matches),
        "matches": values["matches"][:SHOWN_MATCHES],
        "training_rows": sorted(overlap.training_rows),
        "seconds": round(overlap.seconds, 3),
    }


def record_overlap(
    config: ContaminationConfig, overlap: Overlap, directory: Path
) -> dict[str, Any]:
    """Print the table, write contamination.json into the directory; return the headline."""
    show_overlap(overlap)
    write_json(directory / "contamination.json", as_json(config, overlap))
    return headline(config, overlap)


def overlap_table(overlap: Overlap) -> "Table":
    """Return one row per evaluation set."""
    columns = (
        *("evaluation set", "pictures in training", "same file", "look-alike", "mirrored"),
        *("questions on them", "same question, answer and picture", "same text, other picture"),
    )
    title = (
        f"contamination: {overlap.num_training_rows:,} training rows on "
        f"{overlap.num_training_pictures:,} pictures against every evaluation set "
        f"(hashes within {overlap.max_distance} of 256 bits, {overlap.seconds:.1f} s)"
    )
    rows = (
        [
            part.name,
            f"{part.num_shared:,} of {part.num_pictures:,} ({part.image_overlap:.0%})",
            *map(str, (part.num_same_file, part.num_alike, part.num_mirrored)),
            f"{part.num_questions_on_shared:,} of {part.num_questions:,}",
            *map(str, (part.num_items, part.num_text_repeats)),
        ]
        for part in overlap.sets
    )
    return table(title, columns, rows)


def show_overlap(overlap: Overlap) -> None:
    """Print the table on stderr, where the log goes."""
    console(stderr=True).print(overlap_table(overlap))
    if overlap.unreadable:
        sys.stderr.write(f"{len(overlap.unreadable)} pictures cannot be read\n")
