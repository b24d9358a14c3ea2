"""Writes the XXH3 vectors that the native tests and any other reader check themselves against.

Run `python tests/wire/make_xxh3_vectors.py` from the root; it needs the package `xxhash`, which
wraps the reference implementation.  Byte i of every input is i mod 251: a prime, so that no two
blocks, stripes or lanes of an input are equal and none can change places unnoticed.
Two files hold the same vectors: JSON for every language, a table of C++ for the native test.
"""

import json
from pathlib import Path

import xxhash

ROOT = Path(__file__).resolve().parents[2]
PERIOD = 251
LENGTHS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 97, 127, 128),
    *(129, 143, 144, 145, 159, 160, 161, 191, 192, 193, 223, 224, 239, 240),
    *(241, 255, 256, 257, 319, 320, 321, 511, 512, 513, 960, 961, 1023, 1024, 1025, 1087, 1088),
    *(1089, 2047, 2048, 2049, 4096, 8191, 8192, 8193, 65_535, 262_144, 262_207),
)
SEEDS = (0, 1, 0x9E3779B185EBCA87, 0xFFFFFFFFFFFFFFFF)


def pattern(length: int) -> bytes:
    period = bytes(range(PERIOD))
    return (period * (length // PERIOD + 1))[:length]


def vectors() -> list[dict[str, int | str]]:
    return [
        {
            "length": length,
            "seed": f"{seed:016x}",
            "xxh3_64": xxhash.xxh3_64_hexdigest(pattern(length), seed),
            "xxh3_128": xxhash.xxh3_128_hexdigest(pattern(length), seed),
        }
        for length in LENGTHS
        for seed in SEEDS
    ]


def as_json(rows: list[dict[str, int | str]]) -> str:
    body = ",\n".join("    " + json.dumps(row) for row in rows)
    return f'{{\n  "pattern_period": {PERIOD},\n  "vectors": [\n{body}\n  ]\n}}\n'


def as_cpp(rows: list[dict[str, int | str]]) -> str:
    lines = ["// Made by tests/wire/make_xxh3_vectors.py: length, seed, xxh3_64, low, high."]
    for row in rows:
        wide = str(row["xxh3_128"])
        words = (row["seed"], row["xxh3_64"], wide[16:], wide[:16])
        lines.append(f"{{{row['length']}, " + ", ".join(f"0x{word}" for word in words) + "},")
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = vectors()
    (ROOT / "tests/wire/xxh3_vectors.json").write_text(as_json(rows))
    (ROOT / "native/tests/xxh3_vectors.inc").write_text(as_cpp(rows))


if __name__ == "__main__":
    main()
