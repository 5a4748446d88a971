"""Writes docs/configuration.md from the models: `python docs/reference.py`.

Text, type, range and default of every key stand in the models alone; a test compares the page with
what this makes of them (`tests/test_docs.py`).
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/configuration.md"
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402  after the path

from cluster.config import RunConfig, preset_names  # noqa: E402

HEAD = """\
# Configuration

Every key of a run, with its default. A value comes from the preset ({presets}), then from the files
of `--config`, then from `key=value` on the command line; `worldr1 train toy --print-config` prints
the outcome, and `RUN/config.json` holds it. Types are strict: `rollout.frames=9` is a number,
`rollout.frames="9"` is refused. Written by `docs/reference.py` from the models: edit those.
"""


def page() -> str:
    """The whole page."""
    names = ", ".join(f"`{name}`" for name in preset_names())
    sections = [HEAD.format(presets=names)]
    for prefix, model in _sections(RunConfig, ""):
        title = f"`{prefix}`" if prefix else "The run"
        text = _flow(inspect.getdoc(model) or "")
        rows = list(_rows(model, prefix))
        table = ["| key | allowed | default | |", "|---|---|---|---|", *rows]
        sections.append(f"## {title}\n\n{text}\n\n" + "\n".join(table) + "\n")
    return "\n".join(sections)


def _sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _sections(field.annotation, f"{prefix}{name}.")


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    schema = model.model_json_schema()["properties"]
    texts = field_texts(model)
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = json.dumps(field.get_default(call_default_factory=True), default=list)
        shown = "unset" if default == "null" else default
        yield f"| `{prefix}{name}` | {_allowed(schema[name])} | `{shown}` | {_flow(texts[name])} |"


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field, of base classes too."""
    texts: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not (issubclass(owner, BaseModel) and owner is not BaseModel):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    texts[statement.target.id] = text.value
    return texts


def _allowed(field: Mapping[str, Any]) -> str:
    """Type and range in words."""
    if "anyOf" in field:
        return " or ".join(_allowed(choice) for choice in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = field.get("type", "")
    if kind in ("integer", "number"):
        low = high = ""
        for name, sign in (("minimum", "≤"), ("exclusiveMinimum", "<")):
            low = f"{field[name]:,.12g} {sign}" if name in field else low
        for name, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")):
            high = f"{sign} {field[name]:,.12g}" if name in field else high
        word = {"integer": "whole", "number": "number"}[kind]
        return f"{low} {word} {high}".strip()
    return {"null": "unset", "boolean": "true, false", "array": "list", "string": "text"}[kind]


def _flow(text: str) -> str:
    """One paragraph per blank-line block, table-safe."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return " ".join(paragraphs).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
