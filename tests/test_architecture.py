"""The design, enforced: who imports whom, how large things may grow, what must load without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for top in ("neox", "kernels", "jobs", "workflow") for p in (ROOT / top).rglob("*.py"))
NEOX_ORDER = ("train", "checkpoint", "parallel", "model")  # each may import those after it
ONLY_IN = {
    "deepspeed": ("neox/parallel/pipeline.py", "neox/parallel/module.py", "neox/parallel/engine.py"),
    "flash_attn": ("kernels/attention/flash.py",),
    "submitit": ("jobs/executor.py",),
    "subprocess": ("jobs/shell.py",),
    "transformers": (
        *("neox/checkpoint/huggingface.py", "neox/data/tokenizer.py", "neox/evaluate.py"),
        "neox/data/vocabularies/sentencepiece.py",
    ),
    "lm_eval": ("neox/evaluate.py",),
    "boto3": ("neox/data/s3.py",),
    "huggingface_hub": ("neox/hub.py",),
    "mpi4py": ("neox/bench/mpi.py", "neox/data/mpi.py"),
}
TORCH_FREE = ("neox/config/", "neox/planner/", "neox/commands/", "neox/__main__.py", "jobs/", "workflow/")
HARD_FILE, HARD_FUNCTION, HARD_KERNEL_FUNCTION, MEAN_FUNCTION = 400, 60, 150, 15


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted modules a file imports; with `top_level_only`, those that loading it loads."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if top_level_only and (lazy or typing_only):
            skipped.update(ast.walk(node))
    found: set[str] = set()
    for node in set(ast.walk(tree)) - skipped:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def uses(path: Path, package: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for module in imports(path))


def functions(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [((node.end_lineno or 0) - node.lineno + 1, f"{name(path)}:{node.lineno} {node.name}") for node in found]


def test_jobs_and_neox_never_import_each_other() -> None:
    assert [name(p) for p in FILES if name(p).startswith("jobs/") and (uses(p, "neox") or uses(p, "kernels"))] == []
    assert [name(p) for p in FILES if name(p).startswith(("neox/", "kernels/")) and uses(p, "jobs")] == []


def test_kernels_import_only_torch_triton_and_flash_attn() -> None:
    allowed = {"torch", "triton", "flash_attn", "kernels", "__future__", *sys.stdlib_module_names}
    outside = {(name(p), m) for p in FILES if name(p).startswith("kernels/") for m in imports(p)}
    assert sorted((p, m) for p, m in outside if m.split(".")[0] not in allowed) == []


def test_layers_of_neox_import_downwards() -> None:
    wrong = [
        (name(p), upper)
        for i, lower in enumerate(NEOX_ORDER)
        for upper in NEOX_ORDER[:i]
        for p in FILES
        if name(p).startswith(f"neox/{lower}/") and uses(p, f"neox.{upper}")
    ]
    assert wrong == []
    data = [p for p in FILES if name(p).startswith("neox/data/")]
    assert [name(p) for p in data for upper in NEOX_ORDER[:-1] if uses(p, f"neox.{upper}")] == []


def test_workflow_imports_only_jobs_config_and_planner() -> None:
    wrong = [
        (name(p), module)
        for p in FILES
        if name(p).startswith("workflow/")
        for module in imports(p)
        if module.split(".")[0] in ("neox", "kernels", "torch")
        and module != "neox"
        and not module.startswith(("neox.config", "neox.planner"))
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_foreign_package_has_one_importer(package: str) -> None:
    assert [name(p) for p in FILES if uses(p, package) and name(p) not in ONLY_IN[package]] == []


def test_login_node_modules_load_no_torch() -> None:
    heavy = ("torch", "deepspeed", "transformers")
    wrong = [
        (name(p), module)
        for p in FILES
        if name(p).startswith(TORCH_FREE)
        for module in imports(p, top_level_only=True)
        if module.split(".")[0] in heavy
    ]
    assert wrong == []


@pytest.mark.parametrize("command", ["neox", "jobs"])
def test_help_loads_no_torch(command: str) -> None:
    code = (
        f"import sys; sys.argv = ['{command}', '--help']\nfrom {command}.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'transformers', 'submitit'} & set(sys.modules), 'a heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_no_import_cycles() -> None:
    modules = {name(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in FILES}
    edges = {m: {i for i in imports(p, top_level_only=True) if i in modules and i != m} for m, p in modules.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in modules:
        visit(module, ())


def test_file_and_function_budgets() -> None:
    assert [name(p) for p in FILES if len(p.read_text().splitlines()) > HARD_FILE] == []
    sizes = [size for p in FILES for size in functions(p)]
    limit = {True: HARD_KERNEL_FUNCTION, False: HARD_FUNCTION}
    assert [where for size, where in sizes if size > limit[where.startswith("kernels/")]] == []
    mean = sum(size for size, _ in sizes) / len(sizes)
    assert mean <= MEAN_FUNCTION, f"mean function is {mean:.1f} lines"


def test_workflow_budgets() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 40
    rules = (ROOT / "workflow" / "rules").glob("*.smk")
    assert [name(p) for p in rules if len(p.read_text().splitlines()) > 120] == []


def test_every_module_opens_with_its_job() -> None:
    assert [name(p) for p in FILES if p.read_text() and not ast.get_docstring(ast.parse(p.read_text()))] == []


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["snakefmt", "--check", "Snakefile", "workflow"],
    ],
)
def test_linters_are_green(command: list[str]) -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
