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
HEADER = json.dumps({"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
FILE = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
SEEDS = {  # whole files to begin with
    "safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(8),
    "header": HEADER,
    "manifest": json.dumps({"files": {"a": FILE, "b": FILE}}).encode(),
    "config.json": b'{"auto_map": null}',
    "index": json.dumps({"weight_map": {"w": "model.safetensors"}}).encode(),
    "ledger": b'{"kind": "size", "metric": "bytes", "value": 1, "variant": "bf16", "model": "tiny", "n": 5}\n',
    "data": b'{"text": "a"}\n\n{"text": "\xc3\xa9"}\n',
}


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
    parser.add_argument("readers", nargs="*", metavar="READER", default=list(SEEDS), help="default: all")
    parser.add_argument("--seconds", type=int, default=600, help="for all of them together (default: 600)")
    parser.add_argument("--one", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        search(*args.one, args.seconds)
        return 0
    failed = []
    for name in args.readers:
        kept = CORPUS / name
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for data in [SEEDS[name], *(path.read_bytes() for path in kept.glob("*.bin"))]:
                (Path(folder) / hashlib.sha256(data).hexdigest()).write_bytes(data)
            command = [sys.executable, "-m", "tests.faults.fuzz", "--one", name, folder]
            done = subprocess.run([*command, "--seconds", str(args.seconds // len(args.readers))], check=False)
            found = sorted(Path(folder).iterdir(), key=lambda p: (not p.name.startswith("found-"), p.stat().st_size))
            for path in found[:MOST_KEPT]:
                data = path.read_bytes()
                (kept / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)
        failed += [name] if done.returncode else []
    print(f"could not take something: {', '.join(failed)}" if failed else "every input was read or refused")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
