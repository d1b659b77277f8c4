"""The pages of docs/reference/, generated from the code: `python -P -m tests.documentation.reference` writes them."""

import inspect
import json
import re
import subprocess
import sys

import caspl
from caspl.errors import CasplError
from service.access.rules import RULES
from tests.architecture.repository import ROOT
from tests.service.http.test_openapi import document as openapi_document
from training.adapting.methods import METHODS
from training.recipe import BoostRecipe

FOLDER = ROOT / "docs" / "reference"
NOTE = "Generated from the code by `make docs`."
SECTION = re.compile(r"(Args|Attributes|Raises|Returns):")
ITEM = re.compile(r"([\w.]+(?:, [\w.]+)*): (.*)")


def cli():
    """All commands with their options, by typer's own generator."""
    command = [sys.executable, "-P", "-m", "typer", "caspl.__main__", "utils", "docs", "--name", "caspl"]
    page = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    body = re.sub(r"^\* `--help`: .*\n", "", page.split("\n", 1)[1], flags=re.MULTILINE)
    body = body.replace("**Options**:\n\n\n", "").replace("```console", "```text").replace("$ caspl", "caspl")
    return f"# Commands\n\n{NOTE} The option `--help` of a command prints the same.\n\n{body.strip()}\n"


def http():
    """Every call of the OpenAPI document with its parameters, and the scope that it requires."""
    document = json.loads(openapi_document())
    lines = [
        "# HTTP calls",
        "",
        f"{NOTE} The types of all bodies, and the examples in Python and JavaScript, are in",
        "`GET /openapi.json` and on the page `/docs` of a running service.",
        "[http-api.md](../http-api.md) explains the calls and lists the errors.",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## `{method.upper()} {path}`", "", described(operation), ""]
            lines += [f"Scope: {scope_in_words(RULES[path][method.upper()])}."]
            lines += parameter_table(operation.get("parameters", []), document)
            if "requestBody" in operation:
                lines += ["", f"Body: {', '.join(f'`{kind}`' for kind in operation['requestBody']['content'])}."]
            lines += [
                "",
                "```sh",
                next(one["source"] for one in operation["x-codeSamples"] if one["lang"] == "Shell"),
                "```",
            ]
    return "\n".join(lines) + "\n"


def described(operation):
    """The first paragraph of a call's description."""
    paragraph = operation.get("description", operation["summary"]).split("\n\n")[0]
    return " ".join(paragraph.split())


def scope_in_words(scope):
    """`any` and `none` in words."""
    return {"any": "any valid key", "none": "no key"}.get(scope, f"`{scope}`")


def parameter_table(parameters, document):
    """The query parameters of a call, with type, default and limits."""
    rows = []
    for one in parameters:
        if one["in"] != "query":
            continue
        text = one.get("description", one["schema"].get("description", ""))
        rows.append(f"| `{one['name']}` | {value_type(one['schema'], document)} | {' '.join(text.split())} |")
    return ["", "| query parameter | value | meaning |", "|---|---|---|", *rows] if rows else []


def value_type(schema, document):
    """A schema in words: type or choices, limits, default."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    options = schema.get("anyOf", [schema])
    words = []
    for one in options:
        if one.get("type") == "null":
            continue
        choices = one.get("enum", [one["const"]] if "const" in one else [])
        kind = " or ".join(f"`{value}`" for value in choices) or one.get("type", "")
        kind = f"list of {one['items'].get('type', '')}s" if kind == "array" else kind
        low, high = one.get("minimum", one.get("exclusiveMinimum")), one.get("maximum", one.get("exclusiveMaximum"))
        if None not in (low, high):
            kind += f", {low} to {high}"
        elif low is not None:
            kind += f", at least {low}"
        elif high is not None:
            kind += f", at most {high}"
        words.append(kind)
    default = schema.get("default")
    return " or ".join(words) + (f"; default `{json.dumps(default)}`" if default not in (None, []) else "")


def python():
    """The public classes of `caspl` with their methods."""
    lines = ["# Python objects", "", f"{NOTE} [python.md](../python.md) has examples.", ""]
    kinds = [getattr(caspl, name) for name in caspl.__all__ if inspect.isclass(getattr(caspl, name))]
    for kind in [kind for kind in kinds if kind is not CasplError]:
        lines += class_section(kind)
    lines += ["## Errors", "", *docstring(CasplError, "`caspl.CasplError`: ")]
    lines += [f"* `caspl.errors.{kind.__name__}`: {inspect.getdoc(kind)}" for kind in CasplError.__subclasses__()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def class_section(kind):
    """A class: constructor, docstring, public methods and properties."""
    lines = [f"## `caspl.{kind.__name__}`", "", f"```python\n{signature(kind.__name__, kind)}\n```", ""]
    lines += docstring(kind)
    if kind is caspl.AsyncClient:
        return lines  # its methods are those of Client
    for name, member in inspect.getmembers(kind):
        if name.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            lines += ["", f"`{name}`: {inspect.getdoc(member)}"]
        elif inspect.isfunction(member):
            lines += ["", f"### `{kind.__name__}.{name}`", "", f"```python\n{signature(name, member)}\n```", ""]
            lines += docstring(member)
    return [*lines, ""]


def signature(name, function):
    """A signature, one parameter per line if it is long; without `self` and with short names of types."""
    found = inspect.signature(function)
    parameters = [one for one in found.parameters.values() if one.name != "self"]
    result = inspect.Signature.empty if inspect.isclass(function) else found.return_annotation
    found = found.replace(parameters=parameters, return_annotation=result)
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Z]\w*)", r"\1", f"{name}{found}")
    if len(text) <= 100:
        return text
    inner, _, result = text.removeprefix(f"{name}(").rpartition(")")
    depth, parts = 0, [""]
    for character in inner:
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return "\n".join([f"{name}(", *(f"    {part.strip()}," for part in parts), f"){result}"])


def docstring(item, prefix=""):
    """A docstring in Google's style as Markdown."""
    lines = (prefix + inspect.getdoc(item)).splitlines()
    converted = []
    for line in lines:
        text = line.strip()
        if SECTION.fullmatch(text):
            converted += [f"**{text.removesuffix(':')}**", ""]
        elif line.startswith("    ") and not line.startswith("     ") and (found := ITEM.fullmatch(text)):
            converted.append(f"* `{found[1]}`: {found[2]}")
        else:
            converted.append(f"  {text}" if line.startswith("     ") else text)
    return [*converted, ""]


def recipes():
    """Every recipe with its defaults, as `--print-recipe` prints it."""
    named = {"boost": BoostRecipe, **{f"adapt --method {name}": entry.recipe for name, entry in METHODS.items()}}
    lines = [
        "# Recipes",
        "",
        f"{NOTE} `--print-recipe` prints the same; `--recipe FILE` and `--set key=value` change values.",
        "[boosting.md](../boosting.md) and [adapting.md](../adapting.md) explain them.",
    ]
    for name, kind in named.items():
        lines += ["", f"## `caspl {name}`", "", f"```toml\n{kind().to_toml().strip()}\n```"]
    return "\n".join(lines) + "\n"


def escaped(page):
    """The page with `<` outside of code as an entity: it is never HTML."""
    return re.sub(r"(```.*?```|`[^`]*`)|<", lambda found: found[1] or "&lt;", page, flags=re.DOTALL)


PAGES = {"cli.md": cli, "http.md": http, "python.md": python, "recipes.md": recipes}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(escaped(make()), encoding="utf-8")
