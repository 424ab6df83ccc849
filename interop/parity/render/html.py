"""A report as one web page that needs nothing else."""

import re
from html import escape

from jaxllm.interop.parity.report.report import LogitsResult, Report

from .charts import position_chart, profile_chart
from .heat_map import heat_map
from .level_sections import level_sections, table
from .page_style import STYLE
from .summary import (
    compared,
    explanation,
    flips_note,
    headline,
    hint,
    name,
    number,
    tightest,
    unjudged_note,
)


def render(report: Report) -> str:
    """The page's HTML."""
    verdict = "ok" if report.ok else "bad"
    parts = [
        f'<header class="{verdict}"><p class="subject">{escape(report.subject)}</p>',
        f"<h1>{headline(report)}</h1><p>{_explanation(report)}</p>{_hint(report)}{_levels(report)}",
        "</header>",
        _figures(report.logits, report) if report.logits else "",
        _section("Level by level", "From the first cause to its last effect.", _overview(report)),
    ]
    if "layers" in report.verdicts and "layers" not in report.unjudged:
        parts += [
            _section(
                "Every step of every layer",
                "Relative L2 error over its threshold: of a cell, that with all steps before it; of"
                " the strip below, the step's own, of what the reference's steps before it"
                " returned. Point at a cell for its numbers.",
                heat_map(report),
            ),
            _section(
                "Along the model",
                "Relative L2 error in execution order. Noise is the reference against itself,"
                " computed in other ways that are just as right.",
                profile_chart(report),
            ),
        ]
    if report.logits is not None:
        parts.append(
            _section(
                "By position",
                "Logits. A wrong mask shows at the first tokens, a wrong rotary frequency at the"
                " last.",
                position_chart(report) + _buckets(report),
            )
        )
    parts += [_section(*section) for section in level_sections(report)]
    parts.append(_section("How it was judged", _rule(report), _facts(report)))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{headline(report)}: {escape(report.subject)}</title>"
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _section(title: str, caption: str, content: str) -> str:
    return f'<section><h2>{title}</h2><p class="caption">{caption}</p>{content}</section>'


def _explanation(report: Report) -> str:
    """The sentence with its path set apart and its numbers in one piece."""
    sentence = escape(explanation(report))
    if first := report.first_divergence:
        path = escape(first.path)
        sentence = sentence.replace(path, f"<code>{path}</code>", 1)
    for note in filter(None, (flips_note(report), unjudged_note(report))):
        sentence += f"<br>{escape(note)}"
    return re.sub(r"(\d)e-(\d)", "\\1e\N{NON-BREAKING HYPHEN}\\2", sentence)


def _hint(report: Report) -> str:
    return f'<p class="hint">{escape(words)}</p>' if (words := hint(report)) else ""


def _levels(report: Report) -> str:
    badges = (
        f'<li class="{"ok" if held else "bad"}">{"✓" if held else "✗"} {escape(level)}</li>'
        for level, held in report.verdicts.items()
    )
    return f'<ul class="levels">{"".join(badges)}</ul>'


def _overview(report: Report) -> str:
    """A row for each level, with what came closest to its threshold or first went beyond it."""
    rows = []
    for level, results in report.rows.items():
        if level not in report.verdicts:
            continue
        held = report.verdicts[level]
        worst = tightest(results) if results else None
        place = "" if worst is None or not (worst.threshold or worst.measured) else name(worst)
        figures = ["", "", ""]
        if worst is not None and worst.threshold:
            figures = [number(x) for x in (worst.measured, worst.floor, worst.threshold)]
        cells = [f"{'✓' if held else '✗'} {level}", compared(level, report), place, *figures]
        rows.append((not held, cells))
    head = ("level", "compared", "closest to its threshold", "error", "noise", "threshold")
    return table(head, rows)


def _figures(logits: LogitsResult, report: Report) -> str:
    """The five numbers that a reader looks for first."""
    figures = (
        (number(logits.relative_l2), "relative L2 of logits", f"noise {number(logits.floor)}"),
        (number(logits.max_over_rms), "max |d| / rms", f"max |d| {number(logits.max_abs)}"),
        (number(logits.kl_max), "largest KL", f"mean {number(logits.kl_mean)} nats"),
        (
            f"{logits.top1_agreement:.1%}",
            "same top 1",
            f"{logits.top1_unexplained} beyond noise",
        ),
        (f"{report.tokens}", "tokens", f"batch {report.batch_size}, length {report.length}"),
    )
    cards = (
        f"<li><strong>{value}</strong><span>{name}</span><small>{detail}</small></li>"
        for value, name, detail in figures
    )
    return f'<ul class="figures">{"".join(cards)}</ul>'


def _buckets(report: Report) -> str:
    head = ("positions", "tokens", "relative L2", "KL mean", "KL max", "same top 1")
    rows = (
        [
            bucket.label,
            str(bucket.tokens),
            *map(number, (bucket.relative_l2, bucket.kl_mean, bucket.kl_max)),
            f"{bucket.top1_agreement:.2%}",
        ]
        for bucket in report.buckets
    )
    return table(head, ((False, cells) for cells in rows))


def _rule(report: Report) -> str:
    bounds = report.tolerance
    return (
        f"An error may be {bounds['noise_factor']:g} times the reference's own noise, at least "
        f"{number(bounds['least'])} and at most {number(bounds['most'])}, in training "
        f"{number(bounds['most_in_training'])}. Weights and configs must be equal."
    )


def _facts(report: Report) -> str:
    facts = {
        **report.dtypes,
        "tokens": "given" if report.seed is None else f"random, seed {report.seed}",
        **report.versions,
    }
    rows = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{''.join(rows)}</dl>"
