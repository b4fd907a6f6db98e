"""Reference of every configuration key, read from the schema's own source so that it cannot go stale."""

from __future__ import annotations

import ast
import inspect

from neox.config import schema


def markdown() -> str:
    """A table per section: key, type, default, meaning (the docstring under the field)."""
    parts = ["# Configuration keys\n"]
    for section in fields(_class(schema.Config)):
        cls = _class(getattr(schema, section["type"]))
        parts.append(f"\n## {section['name']}\n\n{ast.get_docstring(cls)}\n\n| key | type | default | meaning |\n")
        parts.append("|---|---|---|---|\n")
        rows = (f"| `{section['name']}.{f['name']}` | {f['type']} | {f['default']} | {f['doc']} |" for f in fields(cls))
        parts.append("\n".join(row.replace("Literal[", "[") for row in rows) + "\n")
    return "".join(parts)


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
