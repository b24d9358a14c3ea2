"""The documents say what the code says: links, tables of the protocol, constants, examples.

What people read is compared with what runs, so a change of one without the other fails here.
"""

import ast
import dataclasses
import inspect
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest

import pccl
from pccl.base.config import LAN, WAN, ControlLimits
from pccl.cli.main import cli
from pccl.membership import messages
from pccl.transport import native_frames as nf

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
PROTOCOL = (ROOT / "docs/PROTOCOL.md").read_text()
ID, DIGEST = bytes(range(16)), bytes(range(16, 32))
# One value per kind of native field that fits every field of it, and the bytes it must become.
NATIVE_VALUES: dict[str, tuple[Any, bytes]] = {
    "u8": (2, b"\x02"),
    "u16": (0x0102, b"\x02\x01"),
    "u32": (0x01020304, b"\x04\x03\x02\x01"),
    "u64": (0x0102030405060708, b"\x08\x07\x06\x05\x04\x03\x02\x01"),
    "bool": (True, b"\x01"),
    "id": (ID, ID),
    "text": ("ü", b"\x02\x00\xc3\xbc"),
    "id[]": ((ID, DIGEST), b"\x02\x00" + ID + DIGEST),
    "u64[]": ((5, 6), b"\x02\x00" + struct.pack("<QQ", 5, 6)),
    "WaitOn[]": ((nf.WaitOn(ID, 3),), b"\x01\x00" + ID + b"\x03"),
    "Route[]": ((nf.Route(ID, DIGEST),), b"\x01\x00" + ID + DIGEST),
    "FailedStep[]": (
        (nf.FailedStep(7, 3),),
        (1).to_bytes(2, "little") + (7).to_bytes(8, "little") + b"\3",
    ),
    "OpenStep[]": (
        (nf.OpenStep(7, 8, True, False, True, ID, DIGEST, 9),),
        b"\x01\x00" + struct.pack("<QIB", 7, 8, 5) + ID + DIGEST + struct.pack("<Q", 9),
    ),
}


def outside_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The names that headings are linked by."""
    headings = re.findall(r"^#+ (.+)$", outside_code(text), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def rows(*header: str) -> Iterator[list[str]]:
    """The rows of every table of the protocol whose header begins with these words."""
    lines = PROTOCOL.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("| " + " | ".join(header) + " |"):
            for row in lines[at + 2 :]:
                if not row.startswith("|"):
                    break
                yield [cell.strip() for cell in row.strip("|").split("|")]


def fields(cell: str) -> list[tuple[str, str]]:
    """`name` type, `name` type, ... as pairs."""
    return re.findall(r"`(\w+)` ([\w\[\]]+)", cell)


def wire_type(annotation: str) -> str:
    listed = re.fullmatch(r"tuple\[(\w+), \.\.\.\]", annotation)
    return f"{listed[1]}[]" if listed else annotation


def declared(cls: Any) -> list[tuple[str, str]]:
    return [(field.name, wire_type(str(field.type))) for field in dataclasses.fields(cls)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    text = outside_code(path.read_text())
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert not broken


def test_a_source_file_that_points_to_a_chapter_of_the_protocol_finds_it() -> None:
    known = anchors(PROTOCOL)
    folders = ("pccl", "transport", "membership", "collectives", "native")
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".hpp", ".cpp"):
                for title in re.findall(r'docs/PROTOCOL\.md, "([^"]+)"', path.read_text()):
                    assert title.lower().replace(" ", "-") in known, f"{path.name}: {title}"


def test_every_message_has_the_tag_and_the_fields_that_the_protocol_lists() -> None:
    listed = {
        name.strip("`"): (int(tag), fields(cell)) for tag, name, cell in rows("tag", "message")
    }
    unions = (messages.PeerMessageBody, messages.CoordinatorMessageBody)
    classes = [cls for union in unions for cls in get_args(union)]
    assert listed == {cls.__name__: (cls.__wire_tag__, declared(cls)) for cls in classes}


def test_the_structs_inside_messages_have_the_fields_that_the_protocol_lists() -> None:
    listed = {name.strip("`"): fields(cell) for name, cell in rows("struct", "fields")}
    structs = (messages.MemberInfo, messages.StepDecision, messages.ViewInfo)
    assert listed == {cls.__name__: declared(cls) for cls in structs}


def test_every_native_frame_has_the_bytes_that_the_protocol_lists() -> None:
    seen = []
    for number, _, python, _, cell in rows("type", "name", "Python"):
        cls = getattr(nf, python.strip("`"))
        names = [name for name, _ in fields(cell)]
        assert names == [field.name for field in dataclasses.fields(cls)]
        values, parts = zip(*(NATIVE_VALUES[kind] for _, kind in fields(cell)), strict=True)
        body = bytes((nf.MAGIC, int(number), nf.VERSION)) + b"".join(parts)
        assert nf.encode(cls(*values)) == body
        seen.append(cls)
    assert seen == list(get_args(nf.Frame))


def test_the_native_frames_have_the_same_numbers_in_cpp() -> None:
    header = (ROOT / "native/include/pccl/control_frames.hpp").read_text()
    (enum,) = re.findall(r"enum class Type[^{]*\{([^}]*)\}", header)
    numbers = {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", enum)}
    assert numbers == {row[1].lower(): int(row[0]) for row in rows("type", "name", "Python")}


def test_the_data_frames_have_the_layout_that_the_protocol_lists() -> None:
    source = (ROOT / "native/src/wire/wire.cpp").read_text()
    (encode,) = re.findall(r"void encode\(const FrameHeader.*?\n\}", source, re.DOTALL)
    offsets = [int(at) for at in re.findall(r"put\(p, (\d+),", encode)]
    table = list(rows("offset", "field"))
    assert [int(row[0]) for row in table] == offsets
    sizes = [int(re.sub(r"\D", "", row[2])) // 8 for row in table]
    assert [at + size for at, size in zip(offsets, sizes, strict=True)] == [*offsets[1:], 64]


def test_the_data_frames_have_the_types_and_sizes_that_the_protocol_lists() -> None:
    header = (ROOT / "native/include/pccl/wire.hpp").read_text()
    (enum,) = re.findall(r"enum class FrameType[^{]*\{([^}]*)\}", header)
    numbers = {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", enum)}
    table = list(rows("type", "name", "payload"))
    assert numbers == {row[1].lower(): int(row[0]) for row in table}
    payload = {row[1]: row[2] for row in table}
    for name, constant in (("SEAL", "seal"), ("DONE", "done")):
        (size,) = re.findall(rf"{constant}_bytes = (\d+);", header)
        assert payload[name].startswith(f"{size} bytes")
    (size,) = re.findall(r"descriptor_bytes = (\d+);", header)
    assert f"Descriptor, {size} bytes:" in PROTOCOL
    (more,) = re.findall(r"open_bytes = descriptor_bytes \+ (\d+);", header)
    assert payload["OPEN"].startswith(f"{int(size) + int(more)} bytes")


def test_the_eager_budget_is_the_one_that_the_protocol_names() -> None:
    header = (ROOT / "native/include/pccl/link.hpp").read_text()
    assert "eager_operation_bytes = 256 * 1024;" in header
    assert "eager_link_bytes = 8u << 20;" in header
    assert "small_operation_bytes = 64 * 1024;" in header
    assert "**256 KiB of that operation** and **8 MiB over all" in PROTOCOL


def test_the_time_constants_are_those_that_the_protocol_lists() -> None:
    listed = {name.strip("`"): (float(lan), float(wan)) for name, lan, wan, _ in rows("constant")}
    names = [field.name for field in dataclasses.fields(LAN) if field.name != "name"]
    assert listed == {name: (getattr(LAN, name), getattr(WAN, name)) for name in names}


def test_the_limits_are_those_that_the_protocol_lists() -> None:
    limits = ControlLimits()
    cells = {row[0]: row[1] for row in rows("limit")}
    assert cells == {
        "first body of a connection": f"{limits.first_frame_bytes_max} bytes, within "
        f"{limits.first_frame_timeout_s:g} s",
        "later bodies": f"{limits.frame_bytes_max >> 20} MiB",
        "connections that have not said who they are": f"{limits.half_open_max}",
        "secured: TLS handshakes begun": f"{limits.handshake_burst_max} at once, then "
        f"{limits.handshake_rate_per_s:g}/s",
        "secured: connections of one certificate": f"{limits.identity_connections_max}; "
        f"{limits.identity_opening_burst_max} opened at once, then "
        f"{limits.identity_opening_rate_per_s:g}/s; their messages and frames share the rates "
        "above",
        "secured: questions for the status by one ticket from one address": ""
        f"{limits.asking_connections_max}; opened as handshakes are; their messages share the rate "
        "above",
        "connections": f"{limits.connections_max}",
        "messages per connection": f"{limits.message_burst_max} at once, then "
        f"{limits.message_rate_per_s:g}/s: more ends it",
        "native frames per connection": f"{limits.native_burst_max:,} at once, then "
        f"{limits.native_rate_per_s:g}/s: more is read later",
        "bytes queued for one that does not read": f"{limits.write_queue_bytes_max >> 20} MiB, "
        "then it is cut off",
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_python_example_compiles(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
        compile(ast.parse(block), str(path), "exec")


def test_the_readme_shows_a_program_and_names_only_what_is_public() -> None:
    block, *_ = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    used = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "pccl"
    }
    assert used == {"connect"} and used <= set(pccl.__all__)


def options_of(command: click.Command) -> set[str]:
    """The long options that --help shows."""
    return {
        next(name for name in option.opts if name.startswith("--"))
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    }


def readme_commands(readme: str) -> Iterator[tuple[set[str], click.Command]]:
    """What README's table gives each command; adopt has the coordinator's options too."""
    context = click.Context(cli)
    rows = re.findall(r"^\| `pccl (\w+)( all-reduce| adopt)?(.*?) \| ", readme, re.MULTILINE)
    for name, below, tail in rows:
        command = cli.get_command(context, name)
        if below:
            assert isinstance(command, click.Group)
            command = command.get_command(context, below.strip())
        assert command is not None
        shown = set(re.findall(r"--[a-z-]+", tail.replace("[-v]", "--verbose")))
        if "other options of `pccl coordinator`" in tail:
            coordinator = cli.get_command(context, "coordinator")
            assert coordinator is not None
            shown |= options_of(coordinator)
        yield shown, command


def test_every_command_of_the_readme_exists() -> None:
    from pccl.cli.main import COMMANDS

    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `pccl (\w+)", readme, re.MULTILINE)) == set(COMMANDS)
    for shown, command in readme_commands(readme):
        assert shown == options_of(command), command.name
    help_text = (ROOT / "dev").read_text()
    for document in DOCUMENTS:
        for name in re.findall(r"\./dev ([\w-]+)", document.read_text()):
            assert re.search(rf"^  {name}\)", help_text, re.MULTILINE) or name == "help", name


RUNNING = (ROOT / "docs/RUNNING.md").read_text()


def test_the_errors_that_people_are_told_about_are_those_there_are() -> None:
    table = re.findall(r"^\| `(\w+)` \| (yes|no) \| .+ \| .+ \|$", RUNNING, re.MULTILINE)
    public = {
        name: value
        for name in pccl.__all__
        if isinstance(value := getattr(pccl, name), type) and issubclass(value, pccl.PcclError)
    }
    retryable = {name: "yes" if error.retryable else "no" for name, error in public.items()}
    assert dict(table) == {k: v for k, v in retryable.items() if k != "PcclError"}


def test_the_arguments_of_connect_and_their_defaults_are_those_there_are() -> None:
    table = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? ?\| [^|]+ \|$", RUNNING, re.MULTILINE)
    parameters = inspect.signature(pccl.connect).parameters.values()
    assert table == [(p.name, "" if p.default is p.empty else repr(p.default)) for p in parameters]


def test_every_option_that_the_guide_names_exists() -> None:
    known = {"--help"}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        known |= options_of(command)
        for below in command.commands.values() if isinstance(command, click.Group) else ():
            known |= options_of(below)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", RUNNING)) <= known


def test_the_least_times_of_abandoning_are_those_that_the_guide_names() -> None:
    least = f"at least {LAN.abandon_least_s:g} with `lan`, {WAN.abandon_least_s:g} with `wan`"
    assert least in RUNNING
    assert f"after {LAN.lease_s:g} s without a word, `wan` after {WAN.lease_s:g} s" in RUNNING
