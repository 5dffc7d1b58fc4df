"""Writes the two reference pages, so that they say what the code says: ``python docs/reference.py``.

``commands.md`` is the command line's own help. ``python.md`` is the public names of the modules a user imports, with their
signatures and docstrings, read from the source without importing it. Modules come in the order of architecture.md; what is
merged appears by itself. A test compares both with what is committed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

from cyclopts import App

from shiftscope.cli import app

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "src" / "shiftscope"
#: Not for import by users: what serves the command line, what has a public way in elsewhere, and experiments.
INTERNAL = {
    "engine", "graphs", "positions", "probes", "fixes", "gallery", "reports", "illustrations", "console", "cli", "lab"
}  # fmt: skip
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Shape|Yields):$")
CODE_OR_EMPHASIS = re.compile(r"(`[^`]*`|(?<![\w*])\*{1,2}\w(?:[^*`\n]*\w)?\*{1,2}(?![\w*]))")
ENTRY = re.compile(r"(\*{0,2}\w[\w, ()\[\]|.]*): (.*)$")

Definition = ast.FunctionDef | ast.ClassDef


def commands() -> str:
    """The page of all commands."""
    names = [name for name in app.resolved_commands() if not name.startswith("-")]
    parts = [
        "# Commands",
        "Made from the command line's own help by `docs/reference.py`; `shiftscope COMMAND --help` says the same.",
        "\n".join(f"- [`{name}`](#{name}): {_first_line(app[name])}" for name in names),
        "Exit codes: 0 done; 1 a failure of ours, or a check that did not hold; 2 bad input, told in one sentence; 130 stopped "
        "by Ctrl-C. Tables go to standard output, progress to standard error, so that `--json` can be piped.",
    ]
    return "\n\n".join([*parts, *(_command(name, app[name]) for name in names)]) + "\n"


def python() -> str:
    """The page of all public names."""
    parts = [
        "# Python",
        "Made from the source by `docs/reference.py`: signatures and docstrings of the modules that are there to be imported. "
        "Sizes in brackets name axes, as in `[image, channel, height, width]`; shifts are (dy, dx) in pixels, and content moves "
        "down and right when they are positive. The examples are run in the tests, with their module's names at hand.",
        "Bad input raises a `ValueError`, mostly its subclass `InputError`: what, where, the rule and the remedy, in a sentence. "
        "`shiftscope.lab` holds the experiments behind `shiftscope study`, and is used through the command line.",
        _shortcuts(),
    ]
    return "\n\n".join([*parts, *(_module(name) for name in _modules())]) + "\n"


def _first_line(command: App) -> str:
    return command.help.split("\n\n")[0].strip()


def _command(name: str, command: App) -> str:
    """A command's heading, usage and options."""
    arguments = command.assemble_argument_collection(parse_docstring=True)
    usage, lines = [f"shiftscope {name}"], []
    for argument in arguments:
        field, shown = argument.field_info, argument.name
        positional = field.is_positional
        placeholder = shown.lstrip("-").upper() if positional else _placeholder(argument.hint, argument.get_choices())
        called = placeholder if positional else f"{shown} {placeholder}".rstrip()
        usage += [called if argument.required else f"[{called}]"] if positional or argument.required else []
        default = "" if argument.required or field.default in (None, False, (), "") else f" Default: `{_plain(field.default)}`."
        lines.append(f"- `{called}`: {_prose(' '.join((argument.parameter.help or '').split()))}{default}")
    optional = any(not (argument.required or argument.field_info.is_positional) for argument in arguments)
    shown_usage = " ".join([*usage, "[OPTIONS]"] if optional else usage)
    return "\n\n".join([f"## {name}", _prose(_first_line(command)), f"```\n{shown_usage}\n```", "\n".join(lines)])


def _placeholder(hint: object, choices: tuple[str, ...] | None) -> str:
    """What stands for an option's value."""
    if choices:
        return "|".join(choices)
    kinds = {"bool": "", "int": "N", "float": "X", "Path": "PATH", "str": "TEXT"}
    return next(text for kind, text in kinds.items() if kind in str(hint))


def _plain(default: object) -> str:
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def _modules() -> list[str]:
    """Public modules and packages, in the order in which the architecture names them, others at the end."""
    found = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    order = list(dict.fromkeys(re.findall(r"`(\w+)[\w.]*`", (DOCS / "architecture.md").read_text().split("## Words")[0])))
    known = [name for name in order if name in found]
    rest = sorted(found - set(known) - {"__init__"})
    return [name for name in (*known, *rest) if name not in INTERNAL]


def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text())


def _path(module: str) -> Path:
    base = PACKAGE / module.replace(".", "/") if module else PACKAGE
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _public(tree: ast.Module) -> list[str]:
    """The names of ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _shortcuts() -> str:
    """What the package itself hands out."""
    tree = _tree("")
    homes = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    )
    packages = {name: home.partition(".")[0] for name, home in homes.items()}
    lines = [f"- [`{name}`](#{_anchor(packages[name], name)}), of `shiftscope.{packages[name]}`" for name in _public(tree)]
    return "\n\n".join(["## shiftscope", "These are imported from `shiftscope` itself:", "\n".join(lines)])


def _anchor(module: str, name: str) -> str:
    kind = "class-" if isinstance(_find(module, name)[1], ast.ClassDef) else ""
    return kind + re.sub(r"[^\w-]", "", f"{module}.{name}").lower()


def _module(name: str) -> str:
    """A module's heading, docstring and names."""
    tree = _tree(name)
    parts = [f"## shiftscope.{name}", _docstring(ast.get_docstring(tree) or "")]
    for public in _public(tree):
        where, node = _find(name, public)
        kind = "class " if isinstance(node, ast.ClassDef) else ""
        parts.append("\n\n".join([f"### {kind}`{name}.{public}`", _definition(where, node)]))
    return "\n\n".join(parts)


def _find(module: str, name: str) -> tuple[str, ast.stmt]:
    """Where a public name is defined, and its definition; packages hand on those of their modules."""
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in re.findall(r"\w+", ast.unparse(_target(node))):
            return module, node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            alias = next(alias for alias in node.names if (alias.asname or alias.name) == name)
            return _find(str(node.module).removeprefix("shiftscope."), alias.name)
    raise LookupError(f"shiftscope.{module} hands out {name}, which it does not define.")


def _target(node: ast.Assign | ast.AnnAssign) -> ast.expr:
    return node.target if isinstance(node, ast.AnnAssign) else node.targets[0]


def _definition(module: str, node: ast.stmt) -> str:
    """Signature and docstring of a function, class or constant."""
    lines = _path(module).read_text().splitlines()
    if isinstance(node, ast.FunctionDef):
        return "\n\n".join([_fenced(_header(node, lines).removesuffix(":")), _docstring(ast.get_docstring(node) or "")])
    if isinstance(node, ast.ClassDef):
        return _class(module, node, lines)
    above = node.lineno - 1
    while above and lines[above - 1].startswith("#:"):
        above -= 1
    comment = " ".join(line.removeprefix("#:").strip() for line in lines[above : node.lineno - 1])
    return "\n\n".join([_fenced("\n".join(lines[node.lineno - 1 : node.end_lineno])), *([_prose(comment)] if comment else [])])


def _class(module: str, node: ast.ClassDef, lines: list[str]) -> str:
    """A class with its fields or constructor, its docstring and its public methods."""
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation)]
    members = ["\n".join(lines[each.lineno - 1 : each.end_lineno]) for each in fields]
    if not members and (maker := _constructor(module, node)) is not None:
        members = [f"    {line}" for line in _header(maker, lines).removesuffix(":").splitlines()]
    frozen = ["@dataclass(frozen=True)"] if any("frozen=True" in ast.unparse(each) for each in node.decorator_list) else []
    parts = [
        _fenced("\n".join([*frozen, _header(node, lines), *members]).removesuffix(":")),
        _docstring(ast.get_docstring(node) or ""),
    ]
    methods = (each for each in node.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"))
    return "\n\n".join([*parts, *(_method(method, lines) for method in methods if ast.get_docstring(method))])


def _method(node: ast.FunctionDef, lines: list[str]) -> str:
    """A method of a class; what a module is called with goes without a signature, as it is the same for all."""
    is_property = any("property" in ast.unparse(each) for each in node.decorator_list)
    shown = [] if is_property or node.name == "forward" else [_fenced(_header(node, lines).removesuffix(":"))]
    called = f"**`{node.name}`**" + (", a property" if is_property else "")
    return "\n\n".join([called, *shown, _docstring(ast.get_docstring(node) or "")])


def _constructor(module: str, node: ast.ClassDef) -> ast.FunctionDef | None:
    """``__init__`` of a class or of the first of its bases in the same module that has one."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return each
    classes = {each.name: each for each in _tree(module).body if isinstance(each, ast.ClassDef)}
    bases = [classes[ast.unparse(base)] for base in node.bases if ast.unparse(base) in classes]
    return next((maker for base in bases if (maker := _constructor(module, base)) is not None), None)


def _header(node: Definition, lines: list[str]) -> str:
    """The source of a definition up to its body, as it is formatted there."""
    return cleandoc("\n" + "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])).rstrip()


def _fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"


def _docstring(text: str) -> str:
    """A docstring as Markdown."""
    return "\n\n".join(_block(block) for block in _blocks(text))


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs; a section's entries and an example stay whole."""
    for block in re.split(r"\n\n+", text):
        if block.strip():
            yield block


def _block(block: str) -> str:
    lines = block.splitlines()
    if lines[0].startswith(">>>"):
        return _fenced(block, "pycon")
    heading = SECTION.match(lines[0])
    if heading is None:
        return _prose(block)
    return f"*{heading[1]}*\n\n{_entries(cleandoc(chr(10).join(lines[1:])))}"


def _entries(text: str) -> str:
    """``name: what it is`` as a list; text without names as it is."""
    entries: list[str] = []
    for line in text.splitlines():
        entry = None if line.startswith(" ") else ENTRY.match(line)
        if entry is not None:
            entries.append(f"- `{entry[1]}`: {_prose(entry[2])}")
        elif entries:
            entries[-1] += f"\n  {_prose(line.strip())}"
        else:
            return _prose(text)
    return "\n".join(entries)


def _prose(text: str) -> str:
    """Text of a docstring as Markdown: code in single backticks, names without roles, and nothing else that means something."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    pieces = CODE_OR_EMPHASIS.split(text)
    return "".join(piece if number % 2 else _plain_text(piece) for number, piece in enumerate(pieces))


def _plain_text(text: str) -> str:
    return re.sub(r"([*_\\])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def main() -> None:
    """Write both pages."""
    (DOCS / "commands.md").write_text(commands())
    (DOCS / "python.md").write_text(python())


if __name__ == "__main__":
    main()
