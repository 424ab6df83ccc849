"""The results of benchmarks/power.py, and docs/power.md, which is written from them."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "power.md", ROOT / "benchmarks" / "power.jsonl"

Result = dict[str, Any]

# Why planted bugs are not seen, as far as it was looked into.
REASONS = {
    "a token's embedding, in the weights": (
        "the token is not among those compared; the level `weights`, left out here, sees it"
    ),
}


# What a model lacks where a bug of docs/mutations.md cannot be planted.
LACKING = {
    "experts": (
        *("experts' gate and up swapped, in the weights", "last expert dropped, in the weights"),
        *("router softmax before top-k", "one expert more", "last expert dropped"),
    ),
    "biases of the attention's output": ("bias dropped, in the weights", "bias dropped"),
    "a head of its own (it is tied to the embedding)": (
        *("one logit off, in the weights", "head tied, in the config", "head tied"),
    ),
    "soft caps": ("logits uncapped, in the config", "scores uncapped"),
    "scaling of RoPE": ("rope scaling missing",),
    "heads of which a part is not rotated": ("partial rotary ignored",),
    "sliding windows": ("window off by one",),
    "chunks of attention": ("chunk mask off by one",),
    "GELU": ("the other gelu",),
    "layers without RoPE": ("NoPE off by one",),
    "a scale of the embedding": ("embedding unscaled",),
    "norms of queries and keys": ("qk norm missing",),
    "a temperature of attention": ("temperature floor off by one",),
}


def read_results() -> dict[tuple[str, ...], Result]:
    """Returns all measurements by what was measured; of several, the last."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    found = [json.loads(line) for line in lines]
    return {tuple(one["key"]): one for one in found}


class Results:
    """The file of results, and what is in it already."""

    def __init__(self) -> None:
        self.known = read_results()

    def lacks(self, *key: str) -> bool:
        """Whether this was not measured yet."""
        return key not in self.known

    def add(self, *key: str, **values: Any) -> None:
        """Adds a measurement."""
        self.known[key] = {"key": key, **values}
        with RESULTS.open("a") as file:
            print(json.dumps(self.known[key]), file=file)
        print(*key, values, flush=True)


def page(known: dict[tuple[str, ...], Result]) -> str:
    """Returns the text of the page."""
    groups: dict[str, dict[tuple[str, ...], Result]] = {}
    for (measure, *key), result in known.items():
        groups.setdefault(measure, {})[tuple(key)] = result
    compared = groups.get("zoo", {})
    kinds = Counter(kind for kind, *_ in compared)
    alarms = [result for result in compared.values() if result["alarm"]]
    text = PAGE_TEXT.format(
        weakest="\n".join(_weakest_table(groups.get("weakest", {}))),
        planted="\n".join(
            _planted_lines(groups.get("planted", {}), groups.get("absent", {})),
        ),
        seeds="\n".join(_seeds_table(groups.get("seeds", {}))),
        alarms=len(alarms),
        count=len(compared),
        families=len({family for _, family, _ in compared}),
        kinds=", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items())),
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _weakest_table(found: dict[tuple[str, ...], Result]) -> Iterator[str]:
    names = list(dict.fromkeys(name for _, name in found))
    yield "| bug | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for bug in dict.fromkeys(bug for bug, _ in found):
        unknown = {"strength": "not measured"}
        strengths = (found.get((bug, name), unknown)["strength"] for name in names)
        yield f"| {bug} | " + " | ".join(strengths) + " |"


def reason_of(bug: str) -> str:
    """Returns what a model lacks in which a bug cannot be planted."""
    return next((what for what, bugs in LACKING.items() if bug in bugs), "place for it")


def _planted_lines(
    found: dict[tuple[str, ...], Result], absent: dict[tuple[str, ...], Result]
) -> Iterator[str]:
    for name in dict.fromkeys(name for name, *_ in found):
        own = {key[1:]: result for key, result in found.items() if key[0] == name}
        caught = sum(result["is_caught"] for result in own.values())
        right = sum(result["is_right"] for result in own.values())
        yield (
            f"**{name}**: {len({bug for bug, _ in own})} bugs as on [mutations](mutations.md), "
            f"each at every level that must show it: of {len(own)} trials {caught} are caught, "
            f"and {right} named at the right place."
        )
        yield ""
        for (bug, level), result in own.items():
            if not result["is_right"]:
                named = f"named {result['named']}" if result["is_caught"] else "not caught"
                reason = f": {REASONS[bug]}" if bug in REASONS else ""
                yield f"- {bug} ({level}): {named}{reason}"
        yield ""
        yield from _absent_table(name, [bug for model, bug in absent if model == name])


def _absent_table(name: str, bugs: list[str]) -> Iterator[str]:
    if not bugs:
        return
    yield f"The other {len(bugs)} classes cannot be planted in {name}:"
    yield ""
    yield "| the model has no | classes of bugs |"
    yield "|---|---|"
    reasons: dict[str, list[str]] = {}
    for bug in bugs:
        reasons.setdefault(reason_of(bug), []).append(bug)
    yield from (f"| {reason} | {'; '.join(own)} |" for reason, own in reasons.items())


def _seeds_table(found: dict[tuple[str, ...], Result]) -> Iterator[str]:
    if not found:
        yield "A trained model at all levels, on other inputs for every seed: not measured yet."
        return
    yield "A trained model, compared at all levels on other inputs for every seed:"
    yield ""
    titles = ("model, devices, inputs", "seeds", "rows", "differ", "cannot tell")
    yield f"| {' | '.join(titles)} | largest error / threshold |"
    yield "|---|---|---|---|---|---|"
    for name, devices, kind in dict.fromkeys(key[:3] for key in found):
        own = [r for key, r in found.items() if key[:3] == (name, devices, kind)]
        unclear = [sum(result["cannot_tell"].values()) for result in own]
        yield (
            f"| {name}, {devices}, {kind} | {len(own)} | {sum(r['rows'] for r in own)} | "
            f"{sum(r['differ'] for r in own)} | {min(unclear)} to {max(unclear)} a seed | "
            f"{max(r['largest_ratio'] for r in own):.2f} |"
        )
    worst: Counter[str] = Counter()
    for result in found.values():
        for row, threshold in result["worst"].items():
            worst[row] = max(worst[row], threshold)
    if worst:
        yield ""
        yield "The highest thresholds of rows that cannot tell, over all seeds:"
        yield ""
        yield from (f"- {row}: {threshold:.1e}" for row, threshold in worst.most_common(12))


PAGE_TEXT = """\
# What the parity gate can see

Each bug below has a strength, the relative change that it makes. The table shows the weakest of
3e-1, 1e-1, 3e-2, ... 1e-8 that the levels `layers` and `logits` notice. `config` and `weights`,
which notice any change of a weight, or of a field that changes results in float32, are left out. A
bug without an entry does not apply. The tiny models are those of the tests, with random weights.
`python benchmarks/power.py` writes this page from the measurements in benchmarks/power.jsonl.

{weakest}

"Precision of the MLPs' outputs" rounds them to that relative precision; bfloat16 has 4e-3.

{planted}

## Correct models

**False alarms: {alarms} over {count} correct models** that resemble trained ones, of {families}
families: {kinds}.

They are tiny, and were compared at the levels `layers` and `logits`, on one row of 128 random
tokens.

{seeds}
"""
