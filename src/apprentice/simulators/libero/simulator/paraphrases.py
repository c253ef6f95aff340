"""Other instructions of the same meaning: a small grammar of what LIBERO asks for.

An instruction is a chain of clauses ("turn on the stove and put the moka pot on it"). Each kind of clause has a few
ways to be said, which name the same things, in the same order. LIBERO-PRO's words are left out: they are for tests.
"""

import itertools
import re

PLACE = r"(?:place|put) it"
STARTS = r" and (?=(?:put|place|open|close|turn|push|stack|pick) )"
CLAUSES: dict[str, tuple[str, ...]] = {
    rf"pick up (.+?) and {PLACE} (.+)": ("take {} and put it {}", "grab {} and place it {}", "lift {} and put it {}"),
    r"put both (.+?) and (.+) (in|on) (.+)": ("place both {} and {} {} {}", "put {} and {} {} {}"),
    r"stack (.+) on (.+)": ("put {} on {}", "place {} on {}"),
    r"place them (.+)": ("put them {}", "set them {}"),
    r"put (.+?) ((?:in|on|to|under|at)\b.+|inside)": ("place {} {}", "set {} {}", "position {} {}"),
    r"put (.+)": ("place {}", "set {}"),
    r"push (.+) to (.+)": ("slide {} to {}", "move {} to {}"),
    r"open (.+)": ("pull {} open", "get {} open"),
    r"close (.+)": ("shut {}", "push {} shut"),
    r"turn (on|off) (.+)": ("switch {} {}", "switch {1} {0}", "turn {1} {0}"),
}
PRO = {
    "place the bowl on the stove",
    "place the bowl on top of the cabinet",
    "place the wine bottle on the rack",
    "place the wine bottle on top of the cabinet",
    "switch on the stove",
}


def paraphrases(instruction: str) -> list[str]:
    """All ways that the grammar knows to say an instruction, without itself; empty if it knows none."""
    clauses = [_ways(clause) for clause in _clauses(instruction)]
    links = (" and ", ", then ") if len(clauses) > 1 else ("",)
    said = [link.join(chosen) for link in links for chosen in itertools.product(*clauses)]
    return [text for text in dict.fromkeys(said) if text != instruction and text not in PRO]


def _clauses(instruction: str) -> list[str]:
    parts = re.split(STARTS, instruction)
    merged: list[str] = []
    for part in parts:
        if merged and merged[-1].startswith("pick up ") and re.match(PLACE, part):
            merged[-1] += f" and {part}"
        else:
            merged.append(part)
    return merged


def _ways(clause: str) -> list[str]:
    for pattern, templates in CLAUSES.items():
        if match := re.fullmatch(pattern, clause):
            return [clause, *(template.format(*match.groups()) for template in templates)]
    return [clause]
