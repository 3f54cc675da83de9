"""How a bundle reads thin slices, as they are and as slabs, counted on phantoms.

    python -m docs.thin_slices --spacing-mm 2.5 --noise-hu 4 --phantoms 10

Phantoms are no measure of real performance: what is shown is whether reading slabs loses bleeds or flags normal heads.
"""

from __future__ import annotations

import argparse
import time

from ich_node.findings import IchSubtype, Priority
from ich_node.model import bundle as bundles
from ich_node.model.predict import Predictor, load_predictor
from ich_node.testing.phantom import HeadPhantom, head_phantom

KINDS = [subtype for subtype in IchSubtype if subtype is not IchSubtype.ANY]
FIRST_SEED = 7000
HEIGHT_MM = 160.0
PIXELS = 256


def main() -> None:
    """Read phantoms in pairs, a normal one and one with a bleed."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--bundle", default=bundles.DEFAULT_NAME)
    options.add_argument("--spacing-mm", type=float, default=2.5)
    options.add_argument("--noise-hu", type=float, default=4.0)
    options.add_argument(
        "--phantoms", type=int, default=10, help="pairs of a normal one and one with a bleed"
    )
    chosen = options.parse_args()
    folder = bundles.find_bundle(chosen.bundle)
    slab_mm = bundles.slab_mm(folder, bundles.read_description(folder)) or 5.0
    read_by = load_predictor(folder, "cpu")
    ways = {
        "slices": Predictor(
            system=read_by.system, decision=read_by.system.decision, algorithm=read_by.algorithm
        ),
        "slabs": Predictor(
            system=read_by.system,
            decision=read_by.system.decision,
            algorithm=read_by.algorithm,
            slab_mm=slab_mm,
        ),
    }
    flagged = {(way, bleeds): 0 for way in ways for bleeds in (False, True)}
    seconds = dict.fromkeys(ways, 0.0)
    for number in range(2 * chosen.phantoms):
        bleeds = (KINDS[number // 2 % len(KINDS)],) if number % 2 else ()
        head = phantom(FIRST_SEED + number, bleeds, chosen.spacing_mm, chosen.noise_hu)
        said = []
        for way, predictor in ways.items():
            took, suspicion, priority = read(predictor, head)
            seconds[way] += took
            flagged[way, bool(bleeds)] += priority is not Priority.ROUTINE
            said.append(f"{way} {suspicion:.2f} {priority:8s}")
        print(f"{FIRST_SEED + number} {'+'.join(bleeds) or 'normal':18s}", *said, flush=True)
    for way in ways:
        print(
            f"{way}: {flagged[way, False]} of {chosen.phantoms} normal heads and {flagged[way, True]} of "
            f"{chosen.phantoms} with a bleed flagged, "
            f"{seconds[way] / (2 * chosen.phantoms):.1f} s of processor time each"
        )


def phantom(seed: int, bleeds: tuple[IchSubtype, ...], spacing_mm: float, noise_hu: float) -> HeadPhantom:
    """A head of that many thin slices as cover it."""
    return head_phantom(
        bleeds=bleeds,
        seed=seed,
        rows=PIXELS,
        columns=PIXELS,
        slices=round(HEIGHT_MM / spacing_mm),
        slice_spacing_mm=spacing_mm,
        noise_hu=noise_hu,
    )


def read(predictor: Predictor, head: HeadPhantom) -> tuple[float, float, Priority]:
    """Seconds of processor time, suspicion, priority."""
    begin = time.process_time()
    finding = predictor.predict(head.hu, head.spacing_mm)
    return time.process_time() - begin, finding.suspicion, finding.priority


if __name__ == "__main__":
    main()
