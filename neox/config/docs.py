"""Reference of every configuration key, read from the schema's own source so that it cannot go stale."""

from __future__ import annotations

import ast
import inspect

from neox.config import schema


def markdown() -> str:
    """A table per section: key, type, default, meaning (the docstring under the field)."""
    parts = ["# Configuration keys\n"]
    items = fields(_class(schema.Config))
    sections = [item for item in items if hasattr(schema, item["type"])]
    parts.append("\n" + _table("", [item for item in items if item not in sections]))
    for section in sections:
        cls = _class(getattr(schema, section["type"]))
        parts.append(f"\n## {section['name']}\n\n{ast.get_docstring(cls)}\n\n")
        parts.append(_table(f"{section['name']}.", fields(cls)))
    return "".join(parts)


def _table(prefix: str, rows: list[dict[str, str]]) -> str:
    head = "| key | type | default | meaning |\n|---|---|---|---|\n"
    lines = (f"| `{prefix}{row['name']}` | {row['type']} | {row['default']} | {row['doc']} |\n" for row in rows)
    return head + "".join(lines).replace("Literal[", "[")


def _class(section: type) -> ast.ClassDef:
    """The definition of a section, as written."""
    (node,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(node, ast.ClassDef)
    return node


def fields(cls: ast.ClassDef) -> list[dict[str, str]]:
    """Name, type, default and docstring of every annotated field of a class, in order."""
    found = []
    for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        doc = " ".join(str(after.value.value).split()) if is_doc else ""  # type: ignore[union-attr]
        default = "required" if node.value is None else f"`{ast.unparse(node.value)}`"
        kind = ast.unparse(node.annotation).replace("|", "\\|")
        found.append({"name": ast.unparse(node.target), "type": kind, "default": default, "doc": doc})
    return found
