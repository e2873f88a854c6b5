"""Write docs/study/results.md's figures from the study's analyses, which the repository keeps.

    python benchmarks/study_page.py            # rewrite them
    python benchmarks/study_page.py --check    # exit with 1 if one is out of date

A part stands between `<!-- study: STUDY: NAME -->` and `<!-- end -->`; STUDY is one of `STUDIES`,
whose analysis is `STUDY_analysis.json`, and NAME is a key of `PARTS`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

STUDY = Path(__file__).resolve().parents[1] / "docs" / "study"
STUDIES = ("phantom", "vqa_rad")
MARKED = re.compile(r"(<!-- study: (\w+): ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
CLAIMED, CONTROL, REFERENCE = "open_first", "closed_only", "mixed"
BASELINES = {
    "majority": "majority answer by type",
    "zero_shot": "the base before training",
    "blind": "blind: shown no picture",
}

Analysis = Mapping[str, Any]
Row = Mapping[str, Any]


def points(row: Row) -> str:
    """Return a difference with its interval, in points of accuracy."""
    return f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def share(row: Row) -> str:
    """Return an accuracy with its interval: .614 [.569, .656]."""
    mean, low, high = (
        f"{row[name]:.3f}".removeprefix("0") for name in ("exact_match", "low", "high")
    )
    return f"{mean} [{low}, {high}]"


def probability(value: float) -> str:
    """Return a p-value as people write it."""
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def select(rows: Sequence[Row], **values: Any) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def name_of(row: Row) -> str:
    """Return which of the two primary questions a comparison answers."""
    return "P1" if row["b"] == CONTROL else "P2"


def findings(analysis: Analysis) -> str:
    """Return the primary family in words, one sentence per comparison."""
    words = {"overall": "all questions", "closed": "closed questions"}
    return "".join(
        f"- **{name_of(row)}, {row['max_steps']} steps: {conclusion(row, analysis)}.** "
        f"{row['a']} - {row['b']}, {words[row['questions']]}: "
        f"{points(row)}, p {equals(row['holm_p'])}.\n"
        for row in sorted(analysis["families"]["primary"], key=name_of)
    )


def conclusion(row: Row, analysis: Analysis) -> str:
    """Return the reading, or why the claim gets none: both arms lie below the majority answer."""
    place = {"set": row["set"], "questions": row["questions"]}
    (majority,) = select(analysis["baselines"], phase="majority", **place)
    means = [
        select(analysis["means"], phase="final", arm=arm, max_steps=row["max_steps"], **place)[0]
        for arm in (row["a"], row["b"])
    ]
    if all(mean["exact_match"] < majority["exact_match"] for mean in means):
        return f"{row['verdict']}, both below the majority answer: no verdict on the claim"
    return reading(row)


def reading(row: Row) -> str:
    """Return what the preregistered rule makes of a primary comparison."""
    if row["verdict"] == "no difference shown":
        return "no difference shown"
    if row["difference"] > 0:
        return "the claim is confirmed" if row["b"] == CONTROL else f"{row['a']} is better"
    return "the claim is refuted" if row["b"] == CONTROL else f"{row['b']} is better"


def equals(p_value: float) -> str:
    """Return `= 0.02` or `< 0.0001`."""
    text = probability(p_value)
    return text if text.startswith("<") else f"= {text}"


def comparisons(rows: Sequence[Row], *, with_set: bool = False) -> str:
    """Return a family as a table."""
    header = ["a - b", "steps", *(["set"] if with_set else []), "questions", "seeds"]
    header += ["difference, points", "p", "adjusted p", "detectable: planned, observed", "reading"]
    return table(
        header,
        (
            [
                f"{row['a']} - {row['b']}",
                row["max_steps"],
                *([row["set"]] if with_set else []),
                f"{row['questions']}, n={row['num_questions']}",
                len(row["seeds"]),
                points(row),
                probability(row["p_value"]),
                probability(row["holm_p"]),
                f"{detectable(row['planned_detectable'])}, "
                f"{detectable(row['observed_detectable'])}",
                row["verdict"],
            ]
            for row in rows
        ),
    )


def detectable(effect: float | None) -> str:
    """Return an effect in points, or a dash where no effect of the plan's size is found."""
    return "-" if effect is None else f"{100 * effect:.1f}"


def primary(analysis: Analysis) -> str:
    """Return P1 and P2 as a table."""
    return comparisons(sorted(analysis["families"]["primary"], key=name_of))


def against_reference(analysis: Analysis, name: str) -> str:
    """Return S1 or S2."""
    return comparisons(analysis["families"][f"each arm - {REFERENCE}, {name}"])


def overall(analysis: Analysis) -> str:
    """Return S3."""
    return comparisons(analysis["families"][f"{CLAIMED} - {CONTROL}, overall"], with_set=True)


def arms(analysis: Analysis, name: str) -> str:
    """Return every arm's accuracy by budget and type, and the baselines below."""
    means = select(analysis["means"], phase="final", set=name)
    kinds = ("overall", "open", "closed")
    lines = [
        [
            arm,
            budget,
            *(share(*select(means, arm=arm, max_steps=budget, questions=k)) for k in kinds),
        ]
        for budget in sorted({row["max_steps"] for row in means})
        for arm in sorted({row["arm"] for row in means})
    ]
    for phase, words in BASELINES.items():
        rows = select(analysis["baselines"], phase=phase, set=name)
        lines.append([words, "", *(share(*select(rows, questions=kind)) for kind in kinds)])
    counts = [select(means, questions=kind)[0]["num_questions"] for kind in kinds]
    header = [f"{kind}, n={num}" for kind, num in zip(kinds, counts, strict=True)]
    return table(["arm", "steps", *header], lines)


def forgetting(analysis: Analysis) -> str:
    """Return both two-stage arms after their first and after their second stage, on `test`."""
    lines = [
        [
            row["max_steps"],
            arm,
            phase.replace("after_", "after its first stage, ").replace("final", "at the end"),
            share(row),
            f"{100 * row['yes_or_no']:.0f} %",
            share(*select(means, phase=phase, max_steps=row["max_steps"], questions="closed")),
        ]
        for budget in sorted({row["max_steps"] for row in analysis["means"]})
        for arm, first in (("open_first", "after_open"), ("closed_first", "after_closed"))
        for means in [select(analysis["means"], arm=arm, set="test")]
        for phase in (first, "final")
        for row in select(means, phase=phase, max_steps=budget, questions="open")
    ]
    return table(["steps", "arm", "when", "open", "open answered with yes or no", "closed"], lines)


def post_hoc(analysis: Analysis) -> str:
    """Return P1 with equally many closed examples."""
    rows = analysis["post_hoc_equal_closed_budget"]
    header = ["steps", "closed examples in both", "difference on closed questions, points"]
    return table(
        header, ([row["max_steps"], f"{row['max_steps'] * 4:,}", points(row)] for row in rows)
    )


def course(analysis: Analysis) -> str:
    """Return when, with what and how long."""
    facts = analysis["course"]
    start, end = (datetime.fromisoformat(facts[name]) for name in ("started", "ended"))
    cells = facts["cell_seconds"]
    whole = (end - start).total_seconds()
    took = f"{whole / 60:.0f} minutes" if whole >= 300 else f"{whole:.0f} seconds"
    seconds = ", ".join(f"{value:,} s at {budget} steps" for budget, value in cells.items())
    state = "changed or new files beside it" if facts["any_dirty"] else "no changed file"
    machine = facts["environment"]
    gpus = [gpu.split(",")[0] for gpu in machine["gpus"]]
    where = f"one of {len(gpus)} {gpus[0]}, " if gpus else ""
    share = f", which is {sum(cells.values()) / 120:.0f} minutes on each of two cores"
    return (
        f"{facts['num_runs']} cells, {facts['num_unfinished']} unfinished, "
        f"{facts['num_restarted']} started again; code of {', '.join(facts['commits'])[:7]}, "
        f"{state};\n{start:%Y-%m-%d %H:%M} to {end:%H:%M} UTC, {where}{machine['num_cpus']} "
        f"CPU cores, torch {facts['torch']}. From the first cell's start to the last one's end: "
        f"**{took}**;\nthe cells' seconds add up to {sum(cells.values()):,} "
        f"({seconds}){'' if gpus else share}.\n"
    )


PARTS: dict[str, Callable[[Analysis], str]] = {
    "findings": findings,
    "primary": primary,
    "S1": lambda analysis: against_reference(analysis, "test"),
    "S2": lambda analysis: against_reference(analysis, "shifted"),
    "S3": overall,
    "arms on test": lambda analysis: arms(analysis, "test"),
    "arms on shifted": lambda analysis: arms(analysis, "shifted"),
    "forgetting": forgetting,
    "post hoc": post_hoc,
    "course": course,
}


def rewritten(text: str, analyses: Mapping[str, Analysis]) -> str:
    """Return the document with its parts as the studies' analyses make them."""

    def replacement(match: re.Match[str]) -> str:
        for name, known in ((match[2], analyses), (match[3], PARTS)):
            if name not in known:
                sys.exit(f"nothing is called {name!r}; there are {', '.join(known)}")
        return f"{match[1]}{PARTS[match[3]](analyses[match[2]])}{match[4]}"

    return MARKED.sub(replacement, text)


def read_analysis(name: str) -> Analysis:
    """Return a study's analysis."""
    text = (STUDY / f"{name}_analysis.json").read_text(encoding="utf-8")
    analysis: Analysis = json.loads(text)
    return analysis


def main() -> None:
    """Rewrite or check the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--document", type=Path, default=STUDY / "results.md")
    options = parser.parse_args()
    analyses = {name: read_analysis(name) for name in STUDIES}
    old = options.document.read_text(encoding="utf-8")
    new = rewritten(old, analyses)
    if options.check and new != old:
        sys.exit(f"out of date: {options.document}; run python benchmarks/study_page.py")
    if new != old:
        options.document.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
