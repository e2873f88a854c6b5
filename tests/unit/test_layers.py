"""Imports between folders point one way; a mistake on the command line costs no heavy import."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "medvqa"
# From the ground up: a place may import from itself and from what stands before it.
ORDER = (
    *(
        "config",
        "data",
        "curriculum",
        "tracking",
        "models",
        "fast",
        "training",
        "evaluation",
    ),
    *("contamination", "inputs", "run", "export", "sweep", "report", "preflight", "serve", "api"),
    *("plugins", "cli"),
)
# Imported inside the function that needs them: most commands end without them.
HEAVY = {
    *("torch", "torchvision", "transformers", "tokenizers", "trl", "peft", "unsloth", "datasets"),
    *("bitsandbytes", "triton", "wandb", "bert_score", "numpy", "PIL", "rich", "matplotlib"),
    *("wandb_workspaces", "optuna", "fastapi", "uvicorn", "starlette", "pydantic", "httpx"),
    *("fastmcp", "langchain_core", "langgraph", "gradio", "huggingface_hub", "safetensors"),
    *("imagehash", "pydicom", "nibabel", "scipy", "sklearn", "statsmodels", "submitit", "ray"),
    *("nltk", "sacrebleu", "rouge", "rouge_score"),
}
FILES = sorted(PACKAGE.rglob("*.py"))
# The fused engine stands behind `choice`, which imports it where it is chosen.
ON_DEMAND = {
    f"medvqa.fast.{path.stem}"
    for path in (PACKAGE / "fast").glob("*.py")
    if path.stem not in ("__init__", "choice")
}
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(nodes: list[ast.stmt] | list[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        assert not (isinstance(node, ast.ImportFrom) and node.level), "a relative import"
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def by_file(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=by_file)
def test_a_folder_imports_only_from_folders_below_it(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    ours = {name.split(".")[1] for name in imported(nodes) if name.startswith("medvqa.")}
    ours -= {"__version__"}
    if place_of(path) == "__init__":
        assert not ours
        return
    rank = ORDER.index(place_of(path))
    upward = {place for place in ours if ORDER.index(place) > rank}
    assert not upward


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_modules_of_a_folder_import_one_another_in_no_circle_not_even_in_functions(folder):
    files = {
        f"medvqa.{by_file(path).removesuffix('.py').replace('/', '.')}": path
        for path in (PACKAGE / folder).rglob("*.py")
    }
    needs = {}
    for module, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        by_name = {  # import_module("medvqa.folder.module")
            node.args[0].value
            for node in nodes
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
        }
        needs[module] = (imported(nodes) | by_name) & files.keys()
    TopologicalSorter(needs).prepare()


@pytest.mark.parametrize("path", FILES, ids=by_file)
def test_a_module_imports_no_heavy_library_at_its_top(path):
    module = "medvqa." + by_file(path).removesuffix(".py").replace("/", ".")
    if module in ON_DEMAND:
        return
    top = imported(ast.parse(path.read_text(encoding="utf-8")).body)
    assert not {name.split(".")[0] for name in top} & HEAVY
    assert not top & ON_DEMAND


@pytest.mark.parametrize("path", FILES, ids=by_file)
def test_nothing_outside_imports_the_fused_engine_s_modules(path):
    if place_of(path) != "fast":
        assert not imported(list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))) & ON_DEMAND


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_can_be_imported_alone_and_says_what_it_is_for(folder):
    modules = [
        f"medvqa.{folder}.{path.stem}"
        for path in sorted((PACKAGE / folder).glob("*.py"))
        if f"medvqa.{folder}.{path.stem}" not in ON_DEMAND
    ]
    code = f"import importlib; [importlib.import_module(name) for name in {modules!r}]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))


def test_only_the_models_know_a_backend():
    knowing = {
        place_of(path)
        for path in FILES
        if imported(list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
        & {"unsloth", "peft"}
    }
    assert knowing <= {"models", "training"}
