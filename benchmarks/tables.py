"""Make the tables of README.md and docs/ from the results that the repository keeps.

    python benchmarks/tables.py            # rewrite them
    python benchmarks/tables.py --check    # exit with 1 if one is out of date
    python benchmarks/tables.py --add VISIT/engine.json    # take a visit's records first

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a key of `TABLES`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engine.json"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "engine.md")
MARKED = re.compile(r"(<!-- table: ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet.\n"
BATCH_SIZE = 8

Record = Mapping[str, Any]
Records = Sequence[Record]
Rows = list[tuple[Record, Mapping[str, Any]]]
Headline = tuple[Record, list[object]]


def rows_of(records: Records, part: str, **wanted: Any) -> Rows:
    """Return the part's rows, each with its record, of the records that are as wanted."""
    return [
        (record, row)
        for record in records
        if record["part"] == part and all(record[k] == v for k, v in wanted.items())
        for row in record["rows"]
    ]


def commit(record: Record) -> str:
    """Return the code that was measured."""
    return str(record["git"]["commit"] or "unknown")[:7]


def table(
    header: str, lines: Iterable[Sequence[object]], rows: Iterable[tuple[Record, object]]
) -> str:
    """Return a Markdown table with what, when and which code its rows' records are of."""
    body = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    if not body:
        return NOTHING
    rule = "|" + "---|" * (header.count("|") - 1)
    sources = dict.fromkeys(
        f"{r['hardware']}, {r['date'][:10]}, torch {r['environment']['packages']['torch']}, "
        f"commit {commit(r)}"
        for r, _ in rows
    )
    return "\n".join([header, rule, *body, "", "; ".join(sources) + ".", ""])


def kernels(record: Record, row: Mapping[str, Any]) -> str:
    """Return who computes: `fused`, `plain, checkpointing`, `unsloth`."""
    name = row["engine"] if record["backend"] == "transformers" else record["backend"]
    name += ", checkpointing" if record["checkpointing"] else ""
    return name if record["rank"] == 16 else f"{name}, rank {record['rank']}"


def step(row: Mapping[str, Any]) -> str:
    """Return micro-batch and accumulation."""
    return f"{row['micro_batch_size']} x {-(-BATCH_SIZE // row['micro_batch_size'])}"


def is_published(record: Record, row: Mapping[str, Any]) -> bool:
    """Return whether the row is the published way: Unsloth's checkpointing, 2 x 4."""
    published = record["backend"] == "unsloth" and record["checkpointing"]
    return bool(published and row["micro_batch_size"] == 2)


def training_baseline(rows: Rows, record: Record, row: Mapping[str, Any]) -> float | None:
    """Return the published way's rate on the same pictures, or else plain's in its step.

    Of the same code and hardware only: other visits' machines were up to twice as fast.
    """
    alike = [
        (r, other) for r, other in rows
        if r["model"] == record["model"] and other["pictures"] == row["pictures"]
        and (r["hardware"], r["git"]) == (record["hardware"], record["git"])
    ]  # fmt: skip
    plain = [
        o for r, o in alike
        if r["backend"] == "transformers" and (o["engine"], o["micro_batch_size"]) == ("plain", 2)
    ]  # fmt: skip
    found = [o for r, o in alike if is_published(r, o)] or plain
    return float(found[0]["samples_per_second"]) if found else None


def training(records: Records, *, four_bit: bool) -> str:
    """Return rates, memory and losses of all engines."""
    rows = rows_of(records, "training", four_bit=four_bit)

    def line(record: Record, row: Mapping[str, Any]) -> list[object]:
        rate, baseline = row["samples_per_second"], training_baseline(rows, record, row)
        seen = ", seen before" if row["pictures_seen_before"] else ""
        return [
            record["model"],
            f"{kernels(record, row)}, {step(row)}",
            row["pictures"] + seen,
            rate,
            f"{rate / baseline:.1f}" if baseline else "",
            row.get("ms_per_step", ""),
            row["peak_gpu_gb"],
            f"{row['first_loss']:.4f}, {row['last_loss']:.4f}",
        ]

    header = ("| model | engine, step | pictures | samples/s | against the baseline | ms a step | "
              "peak GB | first, last loss |")  # fmt: skip
    return table(header, (line(*pair) for pair in rows), rows)


def answering(records: Records) -> str:
    """Return seconds a question and the least share of equal answers."""
    rows = rows_of(records, "answering")

    def line(record: Record, row: Mapping[str, Any]) -> list[object]:
        seconds, single = row["seconds_per_question"], answering_baseline(rows, record)
        equal = [f"{one['share'] * one['num_questions']:.0f} of {one['num_questions']} ({name})"
                 for name, one in row["equal_answers"].items()]  # fmt: skip
        seen = ", pictures seen before" if row["pictures_seen_before"] else ""
        return [
            record["model"] + (", 4 bits" if record["four_bit"] else ""),
            f"{kernels(record, row)}, {row['decoding']}, {row['batch_size']} at once{seen}",
            f"{row['num_questions']:,}",
            seconds,
            f"{single / seconds:.0f}" if single else "",
            row["peak_gpu_gb"],
            "; ".join(equal),
        ]

    header = ("| model | how | questions | seconds a question | against one by one | peak GB | "
              "equal answers |")  # fmt: skip
    return table(header, (line(*pair) for pair in rows), rows)


def answering_baseline(rows: Rows, record: Record) -> float | None:
    """Return seconds one question at a time: Unsloth's, or else of transformers' own loop."""
    found = [
        (r["backend"] != "unsloth", row["seconds_per_question"]) for r, row in rows
        if r["model"] == record["model"] and r["four_bit"] == record["four_bit"]
        and r["hardware"] == record["hardware"]
        and row["decoding"] == "plain" and row["batch_size"] == 1
    ]  # fmt: skip
    return float(min(found)[1]) if found else None


def curve(records: Records) -> str:
    """Return how far loss curves are from the reference's."""
    rows = rows_of(records, "curve")
    lines = (
        [r["model"], row["case"], row["num_steps"], f"{row['max_difference']:.2g}",
         f"{row['mean_difference']:.2g}", f"{row['first_loss']:.4f}, {row['last_loss']:.4f}"]
        for r, row in rows
    )  # fmt: skip
    header = "| model | engine, step | steps | largest difference | mean | first, last loss |"
    return table(header, lines, rows)


def gradients(records: Records) -> str:
    """Return relative errors of the adapter's gradients."""
    rows = rows_of(records, "gradients")
    lines = (
        [r["model"] + (", 4 bits" if r["four_bit"] else ""), row["case"], row["num_tensors"],
         f"{row['median_relative_error']:.2g}", f"{row['max_relative_error']:.2g}",
         f"{row['cosine']:.6f}"]
        for r, row in rows
    )  # fmt: skip
    header = "| model | engine, step | tensors | median relative error | largest | cosine |"
    return table(header, lines, rows)


def optimizer(records: Records) -> str:
    """Return a step's milliseconds over the adapter's tensors, one by one and laid into one."""
    rows = rows_of(records, "optimizer")
    lines = (
        [r["model"], row["optimizer"], row["one_by_one_ms"], row["together_ms"],
         f"{row['one_by_one_ms'] / row['together_ms']:.1f}",
         f"{row['num_equal']} of {row['num_tensors']} after {row['num_steps']} steps"]
        for r, row in rows
    )  # fmt: skip
    header = ("| model | optimiser | one by one, ms | together, ms | times as fast | "
              "tensors with the same bits |")  # fmt: skip
    return table(header, lines, rows)


def growth(records: Records) -> str:
    """Return cost against images a question, pixels, and model and rank."""
    rows = [(r, row) for r, row in rows_of(records, "growth") if row["axis"] != "pool"]
    lines = (
        [r["model"], r["rank"], row["axis"], f"{row['value']:,}", row["samples_per_second"],
         row["ms_per_step"], row["peak_gpu_gb"], row["seconds_per_question"]]
        for r, row in rows
    )  # fmt: skip
    header = ("| model | rank | what grows | value | samples/s | ms a step | peak GB | "
              "seconds a question |")  # fmt: skip
    return table(header, lines, rows)


def pool(records: Records) -> str:
    """Return what the host does before the first step, against the pool's size."""
    rows = [(r, row) for r, row in rows_of(records, "growth") if row["axis"] == "pool"]
    lines = ([f"{row['value']:,}", row["plan_s"], row["first_batch_s"]] for _, row in rows)
    header = "| examples | planning, s | first batch, s |"
    return table(header, lines, rows)


def startup(records: Records) -> str:
    """Return seconds to the end of the first step, by phase."""
    rows = [(r, row) for r, row in rows_of(records, "startup") if "failed" not in row]
    lines = (
        [r["model"], row["backend"], commit(r), row["attempt"],
         row["first_step_ended_s"], row["outside_s"],
         round(row["phases"]["data"] + row["phases"]["contamination"], 2), row["phases"]["load"],
         row["step_s"]]
        for r, row in rows
    )  # fmt: skip
    header = ("| model | backend | commit | attempt | first step ended after, s | of it "
              "interpreter and imports | data and gate | loading | the step |")  # fmt: skip
    return table(header, lines, rows)


def backends(records: Records) -> str:
    """Return both backends' losses of one batch and of eight steps from one adapter."""
    rows = [(r, row) for r, row in rows_of(records, "backends") if "failed" not in row]
    lines = (
        [r["model"], row["backend"], row["adapter"]["num_trainable"],
         *(f"{row['loss_before'][name]:.4f}" for name in ("whole", "by_parts", "uncounted")),
         f"{row['steps'][0]['loss']:.4f}, {row['steps'][-1]['loss']:.4f}",
         f"{row['steps'][0]['grad_norm']:.4f}, {row['steps'][-1]['grad_norm']:.4f}",
         f"{row['loss_after']['whole']:.4f}"]
        for r, row in rows
    )  # fmt: skip
    header = ("| model | backend | trainable | loss of a batch | by micro-batches | uncounted | "
              "loss of steps 1, 8 | gradient norm | the batch's loss then |")  # fmt: skip
    return table(header, lines, rows)


def headline(records: Records) -> str:
    """Return each target's baseline and the best that was measured, for the README."""
    eight = [r for r in records if r["model"] == "qwen3_vl_8b" and r["rank"] == 16]
    found = [_best_training(eight, *line) for line in HEADLINES]
    found += [_best_startup(eight), _best_answering(eight)]
    kept = [pair for pair in found if pair is not None]
    header = "| | baseline | now | | peak GB |"
    return table(header, (line for _, line in kept), kept)


def _best_training(records: Records, name: str, four_bit: bool, kind: str) -> "Headline | None":
    rows = rows_of(records, "training", four_bit=four_bit)
    new = [
        (record, row) for record, row in rows
        if row["pictures"] == kind and not row["pictures_seen_before"]
    ]  # fmt: skip
    if not new:
        return None
    record, best = max(new, key=lambda pair: pair[1]["samples_per_second"])
    rate, baseline = best["samples_per_second"], training_baseline(rows, record, best)
    ratio = f"{rate / baseline:.1f} times" if baseline else ""
    how = f"{rate} ({kernels(record, best)}, {step(best)})"
    return record, [name, baseline or "", how, ratio, best["peak_gpu_gb"]]


def _best_startup(records: Records) -> "Headline | None":
    found = []
    for record in (r for r in records if r["part"] == "startup"):
        seconds = {
            backend: [
                row["first_step_ended_s"]
                for row in record["rows"]
                if row["backend"] == backend and "failed" not in row
            ]
            for backend in ("unsloth", "transformers")
        }
        if seconds["transformers"]:
            found.append((record, seconds["unsloth"], min(seconds["transformers"])))
    if not found:
        return None
    # One that has the baseline, of the same visit, before a faster one without.
    record, baseline, best = min(found, key=lambda one: (not one[1], one[2]))
    ratio = f"{baseline[0] / best:.1f} times" if baseline else ""
    name = "from a command's start to the end of its first step, s"
    return record, [name, *(baseline[:1] or [""]), best, ratio, ""]


def _best_answering(records: Records) -> "Headline | None":
    rows = rows_of(records, "answering", four_bit=False)
    new = [(r, row) for r, row in rows if not row["pictures_seen_before"]]
    if not new:
        return None
    record, best = min(new, key=lambda pair: pair[1]["seconds_per_question"])
    single, seconds = answering_baseline(rows, record), best["seconds_per_question"]
    ratio = f"{single / seconds:.0f} times" if single else ""
    how = f"{seconds} ({best['decoding']}, {best['num_questions']:,} questions)"
    name = "answering 8 tokens, seconds a question"
    return record, [name, single or "", how, ratio, best["peak_gpu_gb"]]


HEADLINES = (
    ("training, 512 x 512, samples/s", False, "square"),
    ("training, VQA-RAD's pictures, samples/s", False, "real"),
    ("training in 4 bits, 512 x 512, samples/s", True, "square"),
)
TABLES: dict[str, Callable[[Records], str]] = {
    "headline": headline,
    "training": lambda records: training(records, four_bit=False),
    "training in 4 bits": lambda records: training(records, four_bit=True),
    "answering": answering,
    "curve": curve,
    "gradients": gradients,
    "optimizer": optimizer,
    "startup": startup,
    "backends": backends,
    "growth": growth,
    "pool": pool,
}


def rewritten(text: str, records: Records) -> str:
    """Return the document with its tables as the records make them."""

    def made(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            sys.exit(f"no table is called {name!r}; there are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[name](records)}{match[3]}"

    return MARKED.sub(made, text)


def main() -> None:
    """Rewrite or check all documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--add", type=Path, help="records that replace those of the same name")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--documents", type=Path, nargs="+", default=DOCUMENTS)
    options = parser.parse_args()
    kept = json.loads(options.results.read_text(encoding="utf-8"))
    if options.add:
        kept |= json.loads(options.add.read_text(encoding="utf-8"))
        text = json.dumps(kept, indent=2, ensure_ascii=False)
        options.results.write_text(text + "\n", encoding="utf-8")
    records = list(kept.values())
    stale = []
    for path in options.documents:
        old = path.read_text(encoding="utf-8")
        new = rewritten(old, records)
        if new != old:
            stale.append(str(path))
            if not options.check:
                path.write_text(new, encoding="utf-8")
    if options.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
