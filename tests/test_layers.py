"""Imports point one way: each module may import only what is listed here."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medvqa"
HEAVY = {
    *("torch", "torchvision", "transformers", "tokenizers", "trl", "peft", "unsloth"),
    *(
        "bitsandbytes",
        "triton",
        "datasets",
        "wandb",
        "bert_score",
        "numpy",
        "PIL",
        "rich",
        "matplotlib",
        "wandb_workspaces",
        "optuna",
        "fastapi",
        "uvicorn",
        "starlette",
        "pydantic",
        "httpx",
        "fastmcp",
        "langchain_core",
        "langgraph",
        "gradio",
        "huggingface_hub",
        "safetensors",
        "imagehash",
        "scipy",
        "submitit",
        "ray",
    ),
}
# What subclasses or decorates with PyTorch and Triton; nobody imports it at the top, see below.
ON_DEMAND = {"triton_kernels", "projection", "decoder"}
RECORDS = {"example", "config"}
RANKS = {"distributed"}
SAMPLES = {*RECORDS, "image", "prompt", "hardware", "progress", "pretrained"}
MODELS = {*SAMPLES, "model", "collate", "decoder", "vision", "engine", "ahead", "generation"}
SCORES = {*RECORDS, "metrics", "bertscore", "statistics", "scoring"}
# What a module may import; `data` holds its own files too. A new module needs a line here.
MAY_IMPORT = {
    "__init__": set(),
    "example": set(),
    "config": set(),
    "hardware": set(),
    "places": set(),
    "progress": set(),
    "image": RECORDS,
    "pretrained": RECORDS,
    "prompt": RECORDS,
    "curriculum": RECORDS,
    "metrics": RECORDS,
    "record": RECORDS,
    "published": set(),
    "bertscore": RECORDS,
    "statistics": RECORDS,
    "comparison": {*RECORDS, "statistics"},
    "power": {*RECORDS, "statistics"},
    "checkpoint": {*RECORDS, "record"},
    "data": {*RECORDS, "image", "ahead", "data"},
    "contamination": {*RECORDS, "image", "metrics", "progress", "places", "contamination"},
    "scoring": SCORES - {"scoring"},
    "score": {*SCORES, "record"},
    "tracking": {*RECORDS, "image", "record"},
    "sync": {*RECORDS, "record", "tracking"},
    "dashboard": {*RECORDS, "record", "tracking"},
    "model": SAMPLES,
    "collate": SAMPLES,
    "ahead": set(),
    "device_time": set(),
    "generation": {*SAMPLES, "model", "collate", "decoder", "engine", "ahead"},
    "identity": MODELS,
    "predictions": {*RECORDS, "places"},
    "distributed": {"config"},
    "torchrun": {*RECORDS, "record", "leaving"},
    "evaluation": {
        *(*MODELS, *SCORES, *RANKS, "identity", "predictions", "record", "tracking"),
    },
    "results": {"evaluation", "record", "score"},
    "contact_sheet": {*RECORDS, "image"},
    "pictures": {*RECORDS, "record", "evaluation", "score", "contact_sheet"},
    "triton_kernels": set(),
    "kernels": {"triton_kernels"},
    "projection": set(),
    "decoder": {*SAMPLES, "model", "kernels", "projection"},
    "engine": {*SAMPLES, "model", "collate", "decoder", "vision"},
    "vision": {*SAMPLES, "model", "collate"},
    "optimizer": {*SAMPLES, "model"},
    "training": {
        *(*SAMPLES, "model", "collate", "curriculum", "record", "checkpoint"),
        *("engine", "optimizer", "ahead", "device_time", *RANKS),
    },
    "base": {*SAMPLES, "model", "collate", "data", "vision", "ahead"},
    "errors": RECORDS,
    "composition": {*RECORDS, "errors", "hardware", "record"},
    "saved": {*SAMPLES, "model"},
    "trained": {
        *(*RECORDS, "composition", "hardware", "model", "saved"),
        *("engine", "evaluation", "record"),
    },
    "vllm": {*RECORDS, "trained"},
    "serve": {
        *(*MODELS, "evaluation", "score", "record", "saved", "trained", "vllm", "errors"),
        "serve",
    },
    "leaving": set(),
    "plugins": {"sweep"},
    "rank": {*RECORDS, *RANKS, "record", "composition", "run", "leaving", "model"},
}
# Those that see everything below them.
MAY_IMPORT["run"] = set(MAY_IMPORT) - {
    *("errors", "composition", "plugins", "rank", "trained", "saved", "vllm", "serve"),
}
MAY_IMPORT["export"] = {
    *(*MODELS, "data", "evaluation", "score", "record", "saved", "composition"),
    *("run", "trained", "vllm", "export"),
}
MAY_IMPORT["sweep"] = {*MAY_IMPORT["run"], "run", "composition", "errors", "sweep"} - {"plugins"}
MAY_IMPORT["report"] = {
    *(*RECORDS, "record", "statistics", "comparison", "power", "score", "image", "data"),
    *("sweep", "report", "published"),
}
MAY_IMPORT["preflight"] = {
    *(*MAY_IMPORT["run"], "run", "composition", "errors", "saved", "preflight"),
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(statements: list[ast.stmt] | list[ast.AST]) -> set[str]:
    names = set()
    for node in statements:
        assert not (isinstance(node, ast.ImportFrom) and node.level), "a relative import"
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "medvqa":
            names |= {f"medvqa.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_every_module_has_its_line_and_every_line_its_module():
    assert {module_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    ours = {name.split(".")[1] for name in imported(nodes) if name.startswith("medvqa.")}
    assert ours <= MAY_IMPORT[module_of(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_no_heavy_library_at_its_top(path):
    top = imported(ast.parse(path.read_text(encoding="utf-8")).body)
    if module_of(path) in ON_DEMAND:
        return
    assert not {name.split(".")[0] for name in top} & HEAVY
    assert not {name.removeprefix("medvqa.") for name in top} & ON_DEMAND


def test_the_table_itself_has_no_circle():
    # Repeatedly take away what imports nothing that is left; a circle would remain.
    left = {name: below - {name} for name, below in MAY_IMPORT.items()}
    while free := {name for name, below in left.items() if not below & set(left)}:
        left = {name: below for name, below in left.items() if name not in free}
    assert left == {}


def test_only_one_module_knows_a_backend():
    knowing = {
        module_of(path)
        for path in FILES
        if imported(list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
        & {"unsloth", "peft"}
    }
    assert knowing == {"model"}


def test_the_standard_library_is_not_shadowed():
    # A script run from medvqa/ would import such a module in place of the library's.
    assert not set(MAY_IMPORT) & set(sys.stdlib_module_names) - {"__init__", "statistics"}
