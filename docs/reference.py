"""Write the site's two reference pages: `commands.md` from the command line, `python.md` from the source.

cyclopts writes the first from the help of every command. griffe reads the source for the second, without importing it; this
module turns what griffe finds into Markdown. Both pages go into the site only, so a change of the code never leaves them behind.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import griffe

from shiftscope.cli import app

SOURCES = Path(__file__).parent.parent / "src"
#: Packages that serve others: their public names are reached through `shiftscope` itself or through the command line.
INTERNAL = {"cli", "datasets", "engine", "figures", "graphs", "runtime", "studies", "training"}
PYTHON = """# Python

The public names of every package that is made to be imported, with their signatures and docstrings. Sizes in brackets name
axes, as in `[image, channel, height, width]`. Shifts are (dy, dx) in pixels; positive ones move the content down and right.

Invalid input raises `InputError`, a `ValueError` whose two sentences name the problem and the remedy.
"""
CODE_OR_EMPHASIS = re.compile(r"(`[^`]*`|(?<![\w*])\*{1,2}\w(?:[^*`\n]*\w)?\*{1,2}(?![\w*]))")
WIDTH = 100


def commands() -> str:
    """Return the page of all commands, as cyclopts writes it from their help."""
    return f"{app.generate_docs()}\n\n{app.help_epilogue}\n"


def python() -> str:
    """Return the page of all public names."""
    package = cast(griffe.Module, griffe.load("shiftscope", search_paths=[SOURCES], docstring_parser="google"))
    modules = [module for name, module in sorted(package.modules.items()) if name not in INTERNAL and module.exports]
    anchors: dict[str, str] = {}
    sections = [_module(module, anchors) for module in modules]
    return "\n\n".join([PYTHON, _module(package, anchors), *sections]) + "\n"


def _module(module: griffe.Module, anchors: dict[str, str]) -> str:
    """Return a module's heading, docstring and public names, and add their places; a name that has a place is a link to it."""
    parts = [f"## {module.path} {{#{module.path}}}", _docstring(module)]
    links = []
    for name in map(str, module.exports or ()):
        found = module.members[name]
        if isinstance(found, griffe.Module):  # a package hands on the function that its module is named after
            found = found.members[name]
        definition = found.final_target if isinstance(found, griffe.Alias) else found
        if definition.path in anchors:
            links.append(f"- [`{name}`](#{anchors[definition.path]}): {_summary(definition)}")
            continue
        anchors[definition.path] = f"{module.path}.{name}"
        parts += [f"### `{name}` {{#{module.path}.{name}}}", _definition(definition)]
    return "\n\n".join(part for part in (*parts[:2], "\n".join(links), *parts[2:]) if part)


def _summary(found: griffe.Object) -> str:
    return _prose(found.docstring.value.partition("\n\n")[0].replace("\n", " ")) if found.docstring else ""


def _definition(found: griffe.Object) -> str:
    """Return signature, docstring and methods of a function, class or constant."""
    if isinstance(found, griffe.Attribute):
        return "\n\n".join([_fenced(str(found.source).strip()), _comment_above(found)])
    if not isinstance(found, griffe.Class):
        return "\n\n".join([_fenced(_signature(found)), _docstring(found)])
    bases = "".join(f"\n\nA kind of `{base}`." for base in found.bases[:1] if str(base) != "nn.Module")
    parts = [_fenced(_signature(found)), _docstring(found) + bases]
    public = (each for each in found.members.values() if each.docstring and not each.name.startswith("_"))
    return "\n\n".join([*parts, *(_member(each) for each in public if not isinstance(each, griffe.Alias))])


def _member(found: griffe.Object) -> str:
    """Return a method or property of a class."""
    shown = [_fenced(_signature(found))] if isinstance(found, griffe.Function) else []
    return "\n\n".join([f"**`{found.parent.name if found.parent else ''}.{found.name}`**", *shown, _docstring(found)])


def _signature(found: griffe.Object) -> str:
    """Return the signature of a function or class, with one parameter a line where it is long."""
    signature = str(cast(griffe.Function, found).signature()).replace("(self, ", "(").replace("(self)", "()").replace("' ", "'")
    head, _, rest = signature.partition("(")
    head = f"class {found.name}" if isinstance(found, griffe.Class) else found.name
    if len(signature) <= WIDTH:
        return f"{head}({rest}"
    inside, _, returned = rest.rpartition(")")
    return f"{head}(\n" + "".join(f"    {parameter},\n" for parameter in _split(inside)) + f"){returned}"


def _split(parameters: str) -> list[str]:
    """Split at the commas outside all brackets."""
    depth, pieces = 0, [""]
    for letter in parameters:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def _comment_above(found: griffe.Attribute) -> str:
    """Return the `#:` comment above a constant."""
    above: list[str] = []
    assert isinstance(found.filepath, Path)
    for line in reversed(found.lines_collection[found.filepath][: (found.lineno or 1) - 1]):
        if not line.startswith("#:"):
            break
        above.insert(0, line.removeprefix("#:").strip())
    return _prose(" ".join(above))


def _docstring(found: griffe.Object) -> str:
    """Return a docstring as Markdown."""
    return "\n\n".join(_section(section) for section in found.docstring.parsed) if found.docstring else ""


def _section(section: griffe.DocstringSection) -> str:
    """Return a part of a docstring: text and examples, or a titled list of arguments, errors or results."""
    if isinstance(section, griffe.DocstringSectionText):
        blocks = re.split(r"\n\n+", section.value)
        return "\n\n".join(_fenced(block, "pycon") if block.startswith(">>>") else _prose(block) for block in blocks)
    if isinstance(section, griffe.DocstringSectionAdmonition):
        return f"*{section.title}*: {_prose(section.value.description)}"
    title = {"parameters": "Arguments"}.get(section.kind.value, section.kind.value.title())
    return f"*{title}*\n\n" + "\n".join(_entry(entry) for entry in section.value)


def _entry(entry: griffe.DocstringElement) -> str:
    """Return one argument, attribute, error or result."""
    name = getattr(entry, "name", "") or entry.annotation
    name = f"{name} {entry.annotation}" if str(name).endswith(",") else name  # "low, high: ..." names two
    text = _prose(" ".join(entry.description.split()))
    return f"- `{name}`: {text}" if name else f"- {text}"


def _fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"


def _prose(text: str) -> str:
    """Return a docstring's text as Markdown: single backticks, no roles, and no letter that Markdown would read as markup."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    pieces = CODE_OR_EMPHASIS.split(text)
    return "".join(piece if number % 2 else _escaped(piece) for number, piece in enumerate(pieces))


def _escaped(text: str) -> str:
    return re.sub(r"([*_\\])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
