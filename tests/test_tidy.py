"""Style that a machine can see: sizes, names, and what library code must never do to its host."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
EXAMPLE_LINES = 100  # an example is shorter: it is read as a whole
TOPS = (
    "pccl transport collectives membership native model tests benchmarks examples tools docs .ci"
).split()
LOOSE = "dev pyproject.toml .importlinter README.md CHANGELOG.md CONTRIBUTING.md .gitignore".split()
CPP = (".cpp", ".hpp", ".h", ".inc")
BANNED_STEMS = frozenset("util utils helper helpers manager managers misc common stuff".split())
# Put together here, so that this file does not hold what it looks for.
UNFINISHED = re.compile(
    r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b"
)
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(" + "|".join(("work", "root", "farm", "opt", "home")) + r")/"
)
# What may speak to a terminal and end its process: programs, not the library.
PROGRAMS = ("pccl/cli", "pccl/demo", "pccl/bench", "pccl/__main__")
CPP_ENDS_PROCESS = re.compile(
    r"\bstd::(abort|exit|_Exit|quick_exit|terminate)\b"
    r"|(?<![\w:])::(abort|exit|_exit|_Exit|quick_exit)\s*\("
    r"|(^|[;{}]\s*|^\s+)(abort|exit|_exit|_Exit|quick_exit)\s*\("
)
CPP_PRINTS = re.compile(
    r"\bstd::(cout|cerr|clog)\b|(?<!\w)(std::)?(printf|puts|fprintf|fputs)\s*\("
)


def listed(found: list[str]) -> str:
    return "\n" + "\n".join(found)


def files(*suffixes: str) -> Iterator[Path]:
    """Our own text files, each once: the links inside pccl/ are not followed."""
    for top in TOPS:
        for folder, folders, names in os.walk(ROOT / top):
            # A corpus of a fuzzer is no text.
            folders[:] = sorted(
                n for n in folders if not n.startswith(("__pycache", ".", "corpus"))
            )
            yield from (Path(folder) / n for n in sorted(names) if n.endswith(suffixes))
    for name in LOOSE:
        path = ROOT / name
        if path.is_file() and name.endswith(suffixes):
            yield path


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def library_files(*suffixes: str) -> Iterator[Path]:
    tops = ("pccl", "transport", "collectives", "membership")
    native = ("native/src", "native/include", "native/bindings")
    for path in files(*suffixes):
        if shown(path).startswith((*tops, *native)) and not shown(path).startswith(PROGRAMS):
            yield path


def code_only(source: str) -> str:
    """C++ without comments, literals and preprocessor lines; line numbers stay."""
    blank = re.compile(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\''
        r"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*",
        re.DOTALL | re.MULTILINE,
    )
    return blank.sub(lambda match: "\n" * match.group().count("\n"), source)


def cpp_functions(source: str) -> Iterator[tuple[int, int]]:
    """First and last line of each outermost function body, found by its braces."""
    opened: list[str] = []
    header, line, first = "", 1, 0
    for char in code_only(source):
        if char == "{":
            kind = "inner" if "function" in opened else brace_kind(header)
            if kind == "function":
                first = line - header.lstrip().count("\n")
            opened.append(kind)
            header = ""
        elif char == "}":
            if opened and opened.pop() == "function":
                yield first, line
            header = ""
        elif char == ";":
            header = ""
        else:
            header += char
        line += char == "\n"


def brace_kind(header: str) -> str:
    if re.search(r"\b(namespace|class|struct|union|enum|extern)\b", header) and ")" not in header:
        return "scope"
    return "function" if ")" in header else "value"


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {shown(path): len(path.read_text().splitlines()) for path in files(".py", *CPP)}
    long = [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > FILE_LINES_MAX]
    assert not long, listed(long)


def test_an_example_is_read_at_one_glance() -> None:
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in files(".py")
        if path.parent == ROOT / "examples"
    }
    assert {"ddp.py", "elastic_ddp.py", "fsdp2.py"} <= lengths.keys()
    assert all(lines < EXAMPLE_LINES for lines in lengths.values()), lengths


def test_no_line_is_wider_than_the_page() -> None:
    wide = [
        f"{shown(path)}:{number}"
        for path in files(".py", ".pyi", "CMakeLists.txt", "dev", "run", *CPP)
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if len(text) > COLUMNS_MAX
    ]
    assert not wide, listed(wide)


def test_no_python_function_is_longer_than_a_screen() -> None:
    long = [
        f"{shown(path)}:{node.lineno} {node.name}"
        for path in files(".py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long, listed(long)


def test_no_cpp_function_is_longer_than_a_screen() -> None:
    long = [
        f"{shown(path)}:{first}-{last}"
        for path in files(*CPP)
        for first, last in cpp_functions(path.read_text())
        if last - first >= FUNCTION_LINES_MAX
    ]
    assert not long, listed(long)


def test_every_module_is_named_after_what_it_holds() -> None:
    assert [shown(path) for path in files(".py", *CPP) if path.stem in BANNED_STEMS] == []


def test_nothing_is_left_unfinished_and_no_path_of_one_machine_is_named() -> None:
    found = [
        f"{shown(path)}:{number} {text.strip()}"
        for path in files("")
        if path.suffix not in (".png", ".json", ".bin")
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(text) or MACHINE_PATHS.search(text)
    ]
    assert not found, listed(found)


def test_every_module_and_header_is_used_by_another_file() -> None:
    texts = {path: path.read_text() for path in files(".py", ".toml", *CPP)}
    unused = []
    for path in [*library_files(".py"), *library_files(".hpp", ".inc")]:
        if path.stem.startswith("__"):
            continue
        word = path.stem if path.suffix == ".py" else path.name
        seen = re.compile(rf"\b{re.escape(word)}\b")
        if not any(seen.search(text) for other, text in texts.items() if other != path):
            unused.append(shown(path))
    assert not unused, listed(unused)


def ends_or_prints(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise) and node.exc is not None:
        return ast.unparse(node.exc).startswith("SystemExit")
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name in {"print", "exit", "quit", "sys.exit", "os._exit", "os.abort", "sys.stdout.write"}


def test_the_python_library_neither_prints_nor_ends_its_host() -> None:
    found = [
        f"{shown(path)}:{getattr(node, 'lineno', 0)}"
        for path in library_files(".py")
        for node in ast.walk(ast.parse(path.read_text()))
        if ends_or_prints(node)
    ]
    assert not found, listed(found)


def test_the_native_library_neither_prints_nor_ends_its_host() -> None:
    found = [
        f"{shown(path)}:{number} {text.strip()}"
        for path in library_files(*CPP)
        for number, text in enumerate(code_only(path.read_text()).splitlines(), 1)
        if CPP_ENDS_PROCESS.search(text) or CPP_PRINTS.search(text)
    ]
    assert not found, listed(found)


def test_the_function_finder_sees_a_method_and_skips_tables_and_scopes() -> None:
    source = (
        "namespace a {\nstruct S {\n  int f() const noexcept {\n    if (x) {\n    }\n  }\n};\n"
        "constexpr Table t = {\n1,\n};\nvoid g(\n    int b) {\n}\n}  // namespace\n"
    )
    assert list(cpp_functions(source)) == [(3, 6), (11, 13)]
