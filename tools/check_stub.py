"""Compares pccl/_native.pyi with the compiled module: the same names, parameters and defaults.

The stub is written by hand, because its types say more than a binding can know; this check is what
keeps it true.  Types are left to the stub.
"""

import ast
import importlib
import sys
from pathlib import Path

STUB = Path(__file__).resolve().parent.parent / "pccl" / "_native.pyi"
Shape = dict[str, tuple[str, ...]]


def parameters(node: ast.FunctionDef) -> tuple[str, ...]:
    """Names in order, `=` behind one that has a default, `*` where keyword-only ones begin."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    first_default = len(positional) - len(given.defaults)
    names = [
        argument.arg + ("=" if index >= first_default else "")
        for index, argument in enumerate(positional)
    ]
    if given.kwonlyargs:
        names.append("*")
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        names.append(argument.arg + ("" if default is None else "="))
    return tuple(name for name in names if name.rstrip("=") != "self")


def public(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


def shape_of(body: list[ast.stmt], prefix: str = "") -> Shape:
    shape: Shape = {}
    for node in body:
        match node:
            case ast.ClassDef(name=name) if public(name):
                shape[prefix + name] = ("class",)
                shape |= shape_of(node.body, f"{prefix}{name}.")
            case ast.FunctionDef(name=name) if public(name):
                shape[prefix + name] = parameters(node)
            case ast.AnnAssign(target=ast.Name(id=name)) if public(name):
                shape[prefix + name] = ("value",)
            case _:
                pass
    return shape


def main() -> int:
    try:
        module = importlib.import_module("pccl._native")
    except ModuleNotFoundError as error:
        print(f"check_stub: {error}: build the extension module first", file=sys.stderr)
        return 1
    from nanobind.stubgen import StubGen

    generator = StubGen(module)
    generator.put(module)
    compiled = shape_of(ast.parse(generator.get()).body)
    stub = shape_of(ast.parse(STUB.read_text(encoding="utf-8")).body)
    for name in sorted(compiled.keys() | stub.keys()):
        if compiled.get(name) != stub.get(name):
            print(f"{name}: compiled {compiled.get(name)}, stub {stub.get(name)}")
    return int(compiled != stub)


if __name__ == "__main__":
    sys.exit(main())
