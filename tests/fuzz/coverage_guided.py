"""Fuzzing that is guided by coverage: ``python -m tests.fuzz.coverage_guided --target conversation --runs 100000``.

Needs the extra ``fuzz`` (atheris, https://github.com/google/atheris). It begins with what lies in
``tests/fuzz/corpus``, and keeps what reaches new code in a folder of its own. What does not hold ends the run, and
is written to the folder for findings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

_INSTRUMENTED = ("ich_node.receive", "pynetdicom.pdu", "pynetdicom.pdu_items", "pynetdicom.pdu_primitives")
_INSTRUMENTED += ("pynetdicom.dimse_messages", "pynetdicom.fsm", "pynetdicom.acse", "python_multipart")
_SHARED_MEMORY = Path("/dev/shm")


def main() -> int:
    """Run."""
    options = _parser().parse_args()
    try:
        import atheris
    except ImportError:
        print('This needs atheris: pip install "ich-node[fuzz]"', file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        from tests.fuzz.targets import Targets, by_name
    if options.target not in by_name:
        print(f"There is no target {options.target}: {', '.join(by_name)}.", file=sys.stderr)
        return 2
    from tests.fuzz.corpus import FOLDER
    from tests.fuzz.generators import generated_for
    from tests.fuzz.mutations import mutate_bytes

    (options.corpus / options.target).mkdir(parents=True, exist_ok=True)
    options.findings.mkdir(parents=True, exist_ok=True)
    place = tempfile.mkdtemp(prefix="fuzz-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None)
    targets = Targets(Path(place))

    def one_input(content: bytes) -> None:
        targets.run(options.target, content)

    def mutator(content: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)
        match random.randrange(4):
            case 0:
                return generated_for(options.target, random)[:longest]
            case 1:
                changed = bytearray(content)
                mutate_bytes(changed, random)
                return bytes(changed[:longest])
            case _:
                mutated: bytes = atheris.Mutate(content, longest)
                return mutated

    arguments: list[Any] = [
        sys.argv[0],
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-max_total_time={int(60 * options.minutes)}",
        "-max_len=65536",
        "-timeout=600",
        f"-artifact_prefix={options.findings}/{options.target}-",
        str(options.corpus / options.target),
        str(FOLDER / options.target),
    ]
    with targets.receiver.watched():
        atheris.Setup(arguments, one_input, custom_mutator=mutator)
        atheris.Fuzz()  # ends the process
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.coverage_guided", description=__doc__)
    parser.add_argument("--target", default="conversation", help="what to fuzz; one of those of tests.fuzz")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs to try; -1: no end")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so long; 0: no end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="inputs are kept here")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
