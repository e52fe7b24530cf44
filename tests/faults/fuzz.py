"""A coverage-guided search for bytes that a reader can't take: `python -m tests.faults.fuzz [--seconds 600] [READER]`.

It needs atheris, which is in no lock: `python -m pip install atheris`. What reached something new is kept in `corpus/`,
where `test_fuzz.py` reads it again; an input that a reader could not take is written there too, and ends the search.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
LARGEST_BYTES, MOST_KEPT = 2000, 60


def seeds(reader: str) -> list[bytes]:
    """Whole files to begin with."""
    text = json.dumps({"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    one = {"safetensors": struct.pack("<Q", len(text)) + text + bytes(8), "header": text}
    sha256 = hashlib.sha256(b"x").hexdigest()
    one["manifest"] = json.dumps(
        {"files": {"a": {"bytes": 1, "sha256": sha256}, "b": {"bytes": 2, "sha256": sha256}}}
    ).encode()
    one["index"] = json.dumps({"weight_map": {"w": "model.safetensors"}}).encode()
    one["ledger"] = b'{"kind": "size", "metric": "bytes", "value": 1, "variant": "bf16", "model": "tiny", "n": 5}\n'
    one["data"] = b'{"text": "a"}\n\n{"text": "\xc3\xa9"}\n'
    return [one.get(reader, b'{"auto_map": null}')]


def search(reader: str, folder: str, seconds: int) -> None:
    """Searches in this process, which ends with it. labkit is imported here, not before: it must tell its way."""
    import atheris

    with atheris.instrument_imports(include=["labkit", "json"], enable_loader_override=False):
        from tests.faults.readers import READERS

    options = [f"-max_total_time={seconds}", f"-max_len={LARGEST_BYTES}", f"-artifact_prefix={folder}/found-"]
    atheris.Setup([sys.argv[0], *options, folder], READERS[reader])
    atheris.Fuzz()


def main() -> int:
    """Exit code 1 if a reader could not take something."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--seconds", type=int, default=600, help="for all of them together (default: 600)")
    parser.add_argument("--one", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        search(*args.one, args.seconds)
        return 0
    from tests.faults.readers import READERS

    failed, names = [], args.readers or list(READERS)
    for name in names:
        kept = CORPUS / name
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for data in [*seeds(name), *(path.read_bytes() for path in kept.glob("*.bin"))]:
                (Path(folder) / hashlib.sha256(data).hexdigest()).write_bytes(data)
            command = [sys.executable, "-m", "tests.faults.fuzz", "--one", name, folder]
            command += ["--seconds", str(args.seconds // len(names))]
            done = subprocess.run(command, check=False)
            found = sorted(
                Path(folder).iterdir(), key=lambda path: (not path.name.startswith("found-"), path.stat().st_size)
            )
            for path in found[:MOST_KEPT]:
                data = path.read_bytes()
                (kept / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)
        if done.returncode:
            failed.append(name)
    print(f"could not take something: {', '.join(failed)}" if failed else "every input was read or refused")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
