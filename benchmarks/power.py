"""`python benchmarks/power.py [CHECKPOINT ...]`: what parity can see, for docs/power.md.

Compares all models of the zoo, which must raise no alarm, and finds the weakest bugs that are
noticed: in tiny models and in the checkpoints given. With `--zoo N`, it compares every Nth model.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jaxllm  # noqa: F401 - before tests/, which has a folder of that name

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
import zoo  # noqa: E402
from mutants.trial import Outcome, Pair, Trial, run, trials  # noqa: E402
from weak_bugs import BUGS, STRENGTHS, WeakBug  # noqa: E402

from jaxllm.interop.parity.checkpoint import InputOptions, open_both  # noqa: E402
from jaxllm.interop.parity.levels.forward import judge, record_forward  # noqa: E402
from jaxllm.interop.parity.levels.sides import Comparison  # noqa: E402
from jaxllm.interop.parity.recording.recording import Recording  # noqa: E402
from jaxllm.models import with_scanned_layers  # noqa: E402

PAGE = ROOT / "docs" / "power.md"
LEVELS = ("layers", "logits")
TINY = ("llama/llama3", "gpt2")


class Subject(NamedTuple):
    """A correct model, and what its reference computes."""

    name: str
    recording: Recording
    model: Any


def subject(name: str, folder: Path) -> Subject:
    """Runs the reference of a checkpoint."""
    reference, model = open_both(folder)
    inputs = InputOptions().inputs(folder, reference, model)
    comparison = Comparison(reference=reference, model=model, inputs=inputs, levels=LEVELS)
    return Subject(name, record_forward(comparison), comparison.unstacked)


def is_noticed(subject: Subject, bug: WeakBug, strength: float) -> bool:
    """Whether the forward levels alone, without config and weights, notice the bug."""
    with bug.patch(strength):
        forward = judge(subject.recording, bug.weaken(subject.model, strength), LEVELS)
    return not all(tap.ok for tap in forward.taps)


def weakest(subject: Subject, bug: WeakBug) -> str:
    """Returns the lowest strength that is noticed, found by bisection."""
    if not bug.applies(subject.model.config):
        return ""
    low, high = 0, len(STRENGTHS)  # the first `low` are noticed, those from `high` on are not
    while low < high:
        middle = (low + high) // 2
        if is_noticed(subject, bug, STRENGTHS[middle]):
            low = middle + 1
        else:
            high = middle
        print(subject.name, bug.name, STRENGTHS[middle], low, high, flush=True)
    return f"{STRENGTHS[low - 1]:.0e}" if low else f"above {STRENGTHS[0]:.0e}"


def members(every: int) -> list[zoo.ZooModel]:
    """Returns every Nth model of the zoo, a family's together."""
    return sorted(zoo.zoo_models(), key=lambda member: (member.family, member.seed))[::every]


def alarms(compared: list[zoo.ZooModel]) -> Iterator[str]:
    """Yields the false alarms of the zoo."""
    for member in compared:
        with tempfile.TemporaryDirectory() as folder:
            report = zoo.check(member, Path(folder) / "model")
        unclear = sum(row.verdict == "cannot tell" for rows in report.rows.values() for row in rows)
        print(member, "passes" if report.ok else report.first_divergence, unclear, flush=True)
        if not report.ok:
            yield f"{member}: {report.first_divergence.path}"


def table(subjects: list[Subject]) -> Iterator[str]:
    """Yields the lines of the table of weakest bugs."""
    yield "| bug | " + " | ".join(subject.name for subject in subjects) + " |"
    yield "|---|" + "---|" * len(subjects)
    for bug in BUGS:
        yield f"| {bug.name} | " + " | ".join(weakest(one, bug) for one in subjects) + " |"


def planted(folder: Path) -> Iterator[tuple[Trial, Outcome]]:
    """Yields the outcome of every bug of docs/mutations.md that a forward pass shows."""
    reference, model = open_both(folder)
    model = with_scanned_layers(model, False)
    tokens_BT = InputOptions(batch_size=1).inputs(folder, reference, model).target
    pair = Pair(reference, model, tokens_BT, {})
    for trial in trials(folder.name, model):
        if trial.level in LEVELS:
            outcome = run(trial, pair)
            for key in list(pair.recordings)[1:]:  # of other inputs; they are large
                del pair.recordings[key]
            print(trial, outcome, flush=True)
            yield trial, outcome


def summary(folder: Path) -> Iterator[str]:
    """Yields the lines on the bugs planted in a checkpoint: how many are caught, and the others."""
    outcomes = dict(planted(folder))
    caught = sum(outcome.is_caught for outcome in outcomes.values())
    right = sum(outcome.is_right for outcome in outcomes.values())
    yield (
        f"**{folder.name}**: of {len(outcomes)} bugs as on [mutations](mutations.md), in its "
        f"layers and logits, {caught} are caught and {right} named at the right place."
    )
    for trial, outcome in outcomes.items():
        if not outcome.is_right:
            yield f"- {trial.mutation.name} ({trial.level}): " + (
                f"named {outcome.named}" if outcome.is_caught else "not caught"
            )


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--zoo", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subjects = []
        for name in TINY:
            path = Path(folder) / name
            zoo.build(zoo.ZooModel("", name, 0)).save_pretrained(path)
            subjects.append(subject(f"tiny {name}", path))
        subjects += [subject(path.name, path) for path in arguments.checkpoints]
        rows = list(table(subjects))
    bugs = [line for path in arguments.checkpoints for line in summary(path)]
    compared = members(arguments.zoo)
    found = list(alarms(compared))
    counts = Counter(member.kind for member in compared)
    text = PAGE_TEXT.format(
        rows="\n".join(rows),
        bugs="\n".join(bugs),
        count=len(compared),
        alarms=len(found),
        kinds=", ".join(f"{kind} ({count})" for kind, count in counts.items()),
    )
    PAGE.write_text(text)
    print("\n".join([*rows, *bugs, *found]))


PAGE_TEXT = """\
# What the parity gate can see

Each bug below has a strength, the relative change that it makes. The table shows the weakest of
3e-1, 1e-1, 3e-2, ... 1e-8 that the levels `layers` and `logits` notice. `config` and `weights`,
which notice any change of a field or a weight, are left out. The tiny models are those of the
tests, with random weights. `python benchmarks/power.py CHECKPOINT` writes this page.

{rows}

"Precision of the MLPs' outputs" rounds them to that relative precision; bfloat16 has 4e-3.

{bugs}

**False alarms: {alarms} over {count} correct models** that resemble trained ones: {kinds}.
"""


if __name__ == "__main__":
    main()
