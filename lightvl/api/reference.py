"""The page at `GET /docs`: the OpenAPI document as HTML, without scripts and from here alone."""

from collections.abc import Iterator
from html import escape
from typing import Any

Json = dict[str, Any]

_LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minItems": "at least",
    "maxItems": "at most",
    "pattern": "like",
}


def reference_page(document: Json) -> str:
    """Returns the page.

    Args:
        document: OpenAPI 3, its schemas under `components`.
    """
    title = escape(document["info"]["title"])
    schemas = document.get("components", {}).get("schemas", {})
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{title}: routes</title>",
        '<link rel="icon" href="static/icon.svg" type="image/svg+xml">',
        '<link rel="stylesheet" href="static/reference.css">\n</head>\n<body>\n<main>',
        f"<h1>{title}</h1>",
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>',
        "<h2>Routes</h2>",
        *_routes(document["paths"]),
        "<h2>Bodies</h2>",
        *(part for name in schemas for part in _schema(name, schemas[name])),
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _routes(paths: Json) -> Iterator[str]:
    yield "<table>\n<tr><th>route</th><th>what</th><th>body</th></tr>"
    for path, operations in paths.items():
        for method, operation in operations.items():
            what = operation.get("description") or operation.get("summary", "")
            content = operation.get("requestBody", {}).get("content", {})
            body = content.get("application/json", {}).get("schema")
            told = "" if body is None else _kind(body)
            route = f"<code>{method.upper()} {escape(path)}</code>"
            yield f"<tr><td>{route}</td><td>{escape(what)}</td><td>{told}</td></tr>"
    yield "</table>"


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}">{escape(name)}</h3>'
    yield f"<p>{escape(schema.get('description', '')).replace('`', '')}</p>"
    required = schema.get("required", ())
    yield "<table>\n<tr><th>field</th><th>type</th><th>note</th></tr>"
    for field, described in schema.get("properties", {}).items():
        default = described.get("default")
        note = "required" if field in required else ""
        if default is not None:
            note = f"default <code>{escape(str(default))}</code>"
        told = f"<td><code>{escape(field)}</code></td><td>{_kind(described)}</td><td>{note}</td>"
        yield f"<tr>{told}</tr>"
    yield "</table>"


def _kind(schema: Json) -> str:
    """Returns in HTML what a value may be; null isn't told, every optional field takes it."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    kind = escape(str(schema.get("type", "anything")))
    if kind == "array":
        kind = f"list of ({_kind(schema.get('items') or {})})"
    limits = [escape(f"{sign} {schema[k]}") for k, sign in _LIMITS.items() if k in schema]
    return " ".join([kind, *limits])
