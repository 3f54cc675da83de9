"""What people and scanners write into CT headers: body regions, contrast and kernels, as tables.

Free text is compared without case, accents and punctuation, word by word. Languages: English, German, French,
Spanish, Italian, Portuguese, Dutch, Scandinavian, Polish and Croatian as far as head CT protocols go. A text
that says nothing is silence, never evidence.

Kernels. Siemens: one or two letters and a number that grows with sharpness; the operating instructions of the
SOMATOM Sensation (chapter "Body Kernels") call 30 and 40 standard, 50 to 80 sharper, and U70 and above bone.
GE names its kernels. Philips: letters (UA, UB, UC brain; YA to YD and L for lung and bone; D, E detail and
edge). Toshiba and Canon: FC and a number (30s bone, 50s lung, 80s high resolution). But for Siemens the rows
are kernel names as they are met in headers, not a maker's table. A kernel that no row knows is unknown, which
only ranks a series lower.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import StrEnum

# fmt: off
# Prefixes: a word that starts so counts. Words: the whole word counts.
_HEAD_PREFIXES = (
    "head", "kopf", "testa", "cabeza", "cabeca", "hoofd", "huvud", "glowa", "glava", "tete", "brain",
    "cerebr", "cerebel", "encef", "enceph", "gehirn", "hirn", "hersen", "hjarn", "hjerne", "mozg",
    "mozak", "cervell", "cervea", "skull", "schadel", "schaedel", "crani", "crane", "neurocran", "ncct",
    "cct", "stroke",
)
_OTHER_PREFIXES = (
    "chest", "thora", "torax", "lung", "pulmon", "poumon", "abdom", "bauch", "buik", "pelv", "becken",
    "bekken", "bassin", "liver", "leber", "foie", "kidney", "niere", "renal", "heart", "herz", "cardia",
    "coronary", "aort", "spine", "spinal", "cspine", "lspine", "tspine", "cervic", "lumb", "sacr",
    "rachis", "wirbel", "column", "neck", "hals", "cuello", "collo", "pescoco", "knee", "hufte",
    "huefte", "shoulder", "schulter", "ankle", "wrist", "elbow", "extrem", "femur", "tibia", "sinus",
    "orbit", "facial", "massif", "maxill", "mandib", "dental", "kiefer", "temporal", "mastoid",
    "petrous", "felsenbein", "rocher", "urogram", "carotid", "wholebody",
)
_OTHER_WORDS = frozenset((
    "hws", "bws", "lws", "hip", "foot", "feet", "hand", "leg", "arm", "face", "nnh", "iac", "tap",
    "kub", "colon", "body", "trunk", "cou", "ear", "jaw",
))
_CONTRAST_PREFIXES = (
    "contrast", "kontrast", "injekt", "inject", "injec", "inyec", "iniet", "enhanced", "postcontrast",
    "cect", "cta", "ctp", "ctv", "angio", "venogra", "perfus", "carotid", "arterial", "arteriell",
    "arteriel", "venous", "venos", "veineux", "portal", "gado", "iodin", "jod", "delayed",
)
_CONTRAST_WORDS = frozenset((
    "km", "ce", "pk", "mdc", "pdc", "cow", "perf", "gad", "vnc", "virtual",
))
_PLAIN_PREFIXES = (
    "nativ", "unenhanced", "noncontrast", "noncon", "nonenhanced", "ncct", "nect", "precontrast",
    "plain", "basale",
)
_PLAIN_WORDS = frozenset((
    "nc",
))
_NEGATIONS = frozenset((
    "without", "wo", "non", "no", "not", "none", "sans", "ohne", "sin", "senza", "sem", "zonder",
    "uden", "utan", "uten", "bez", "pre", "before", "avant", "vor",
))
_AFFIRMATIONS = frozenset((
    "with", "mit", "avec", "con", "com", "met", "med", "post", "after", "apres", "nach", "dopo",
))
_BONE_PREFIXES = (
    "bone", "knochen", "osseux", "osseu", "hueso", "oseo", "osea", "kosc",
)
_BONE_WORDS = frozenset((
    "os", "osso", "ossa",
))
_SOFT_PREFIXES = (
    "soft", "brain", "weich", "parenchym", "cerebr", "tissue", "weke",
)
_PROJECTION_PREFIXES = (
    "mip", "minip", "vrt", "mpr", "mpvr", "reformat", "curved", "surface",
)
_PROJECTION_WORDS = frozenset((
    "3d", "ssd", "vr", "cbf", "cbv", "mtt", "ttp", "tmax", "summary",
))
_NO_AGENT = frozenset((
    "0", "na", "nil", "none", "no", "nein", "non", "keine", "keins", "kein", "ninguno", "nessuno",
    "aucun", "unknown",
))
# fmt: on
_MARK_REACH = 5
"""How many words "without" reaches: "without IV contrast", "sans injection de produit de contraste"."""


class Contrast(StrEnum):
    """What a text says about contrast medium."""

    SILENT = "SILENT"
    WITHOUT = "WITHOUT"
    WITH = "WITH"
    BOTH = "BOTH"
    """With and without, as in the name of a whole examination."""


class Region(StrEnum):
    """What a text says about the body region."""

    SILENT = "SILENT"
    HEAD = "HEAD"
    """The head, alone or among others."""
    OTHER = "OTHER"


class Kernel(StrEnum):
    """How sharp a reconstruction is."""

    SOFT = "SOFT"
    SHARP = "SHARP"
    """Between: readable, but noisy."""
    BONE = "BONE"
    UNKNOWN = "UNKNOWN"


# First match wins. Upper case, without blanks.
_KERNEL_NAMES: tuple[tuple[re.Pattern[str], Kernel], ...] = tuple(
    (re.compile(pattern), kernel)
    for pattern, kernel in (
        # any maker that says it in words (GE BONE, BONEPLUS, EDGE, LUNG, ULTRA, CHST; UIH H_BONE, B_SHARP;
        # Canon BONE)
        (r".*BONE.*|.*LUNG.*|.*EDGE.*|ULTRA.*|.*VSHARP.*|CHST.*", Kernel.BONE),
        (r"DETAIL.*|.*SHARP.*|HDDETAIL.*", Kernel.SHARP),
        (r"STANDARD.*|STD.*|SOFT.*|.*_SOFT.*|BRAIN.*|.*SMOOTH.*|NEURO.*", Kernel.SOFT),
        # Toshiba, Canon
        (r"FC[358]\d.*", Kernel.BONE),
        (r"FC[01246]\d.*|FC\d", Kernel.SOFT),
        # Philips
        (r"Y[A-D]|L|LUNG|D|E", Kernel.BONE),
        (r"C|EC", Kernel.SHARP),
        (r"U[ABC]|A|B|S[ABC]|IB", Kernel.SOFT),
    )
)
_SIEMENS = re.compile(r"(?:[BHUCIJQDT]|[BHQU][A-Z])(\d{2})(?!\d)[A-Z]?.*")
_SIEMENS_SHARP_FROM, _SIEMENS_BONE_FROM = 45, 55


# "w/o" and its kin become words before punctuation is dropped. In this order.
_SHORTHANDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), f" {word} ")
    for pattern, word in (
        (r"_", ""),
        (r"\bw ?[/&+] ?wo\b|\bw ?/ ?w ?/ ?o\b|\bw wo\b|\bwo ?[/&+] ?w\b", "with without"),
        (r"\bw ?/ ?o\b|\bw\.o\b|\bw o\b|\bwo\b|\bs/c\b", "without"),
        (r"\bw ?/", "with"),
        (r"(?<![a-z0-9])(?:\+ ?c|c ?\+)(?![a-z0-9])", "contrast"),
        (r"(?<![a-z0-9])(?:- ?c|c ?-)(?![a-z0-9])", "plain"),
    )
)


def words(text: str) -> list[str]:
    """Split a text into lower-case words without accents; ``w/o`` and ``w/`` become words of their own."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in folded if not unicodedata.combining(c))
    for pattern, word in _SHORTHANDS:
        plain = pattern.sub(word, plain)
    return re.findall(r"[a-z0-9]+", plain)


def _starts(word: str, prefixes: Iterable[str]) -> bool:
    return any(word.startswith(prefix) for prefix in prefixes)


def region(text: str) -> Region:
    """What a description, a protocol name or Body Part Examined says about the region."""
    found = words(re.sub(r"(?i)\b(head|feet)[ _-]*first", " ", text))
    if any(_starts(word, _HEAD_PREFIXES) for word in found):
        return Region.HEAD
    if any(word in _OTHER_WORDS or _starts(word, _OTHER_PREFIXES) for word in found):
        return Region.OTHER
    return Region.SILENT


def contrast(text: str) -> Contrast:
    """What a description or a protocol name says about contrast medium."""
    found = words(text)
    plain = "without" in found or any(w in _PLAIN_WORDS or _starts(w, _PLAIN_PREFIXES) for w in found)
    # "BRAIN POST" is after contrast; "post op" and "post trauma" are not.
    enhanced = ("with" in found and "without" in found) or found[-1:] == ["post"]
    for index, word in enumerate(found):
        if word in _CONTRAST_WORDS or _starts(word, _CONTRAST_PREFIXES):
            before = found[max(0, index - _MARK_REACH) : index]
            marks = [w for w in before if w in _NEGATIONS or w in _AFFIRMATIONS]
            plain |= any(w in _NEGATIONS for w in marks)
            enhanced |= not marks or any(w in _AFFIRMATIONS for w in marks)
    if plain and enhanced:
        return Contrast.BOTH
    return Contrast.WITH if enhanced else Contrast.WITHOUT if plain else Contrast.SILENT


def names_agent(contrast_bolus_agent: str) -> bool:
    """Whether Contrast/Bolus Agent (0018,0010) names an agent; ``NONE`` and ``w/o`` are no agents."""
    found = words(re.sub(r"(?i)non[ -]?ionic", "ionic", contrast_bolus_agent))
    if not found or "".join(found) in _NO_AGENT:
        return False
    return not (_NEGATIONS.intersection(found) or any(_starts(word, _PLAIN_PREFIXES) for word in found))


def kernel(convolution_kernel: Sequence[str], description: str = "") -> Kernel:
    """How sharp Convolution Kernel (0018,1210) is; where no row knows it, what the description says."""
    for value in convolution_kernel:
        name = value.upper().replace(" ", "")
        if match := _SIEMENS.fullmatch(name):
            sharpness = int(match[1])
            if sharpness >= _SIEMENS_BONE_FROM:
                return Kernel.BONE
            return Kernel.SHARP if sharpness >= _SIEMENS_SHARP_FROM else Kernel.SOFT
        for pattern, kind in _KERNEL_NAMES:
            if pattern.fullmatch(name):
                return kind
    found = words(description)
    soft = any(_starts(word, _SOFT_PREFIXES) for word in found)
    bone = any(word in _BONE_WORDS or _starts(word, _BONE_PREFIXES) for word in found)
    if bone and not soft:
        return Kernel.BONE
    return Kernel.SOFT if soft and not bone else Kernel.UNKNOWN


def is_projection(text: str) -> bool:
    """Whether a series description names a reformation, a projection or a perfusion map."""
    found = words(text)
    return any(word in _PROJECTION_WORDS or _starts(word, _PROJECTION_PREFIXES) for word in found)
