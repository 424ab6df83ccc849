"""A report as one web page that needs nothing else."""

import re
from html import escape

from .charts import position_chart, profile_chart
from .heat_map import heat_map
from .outline import explanation, headline, number, tightest
from .page_style import STYLE
from .report import Report


def render(report: Report) -> str:
    """The page's HTML."""
    verdict = "ok" if report.ok else "bad"
    body = "\n".join(
        (
            f'<header class="{verdict}"><p class="subject">{escape(report.subject)}</p>',
            f"<h1>{headline(report)}</h1><p>{_explanation(report)}</p>{_levels(report)}</header>",
            _figures(report),
            _section(
                "Every step of every layer",
                "Relative L2 error over its threshold. Point at a cell for its numbers.",
                heat_map(report),
            ),
            _section(
                "Along the model",
                "Relative L2 error in execution order. Noise is the reference against itself,"
                " computed in other ways that are just as right.",
                profile_chart(report),
            ),
            _section(
                "By position",
                "Logits. A wrong mask shows at the first tokens, a wrong rotary frequency at the"
                " last.",
                position_chart(report) + _buckets(report),
            ),
            _section("How it was judged", _rule(report), _facts(report)),
        )
    )
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
    path = (report.first_divergence or tightest(report.taps)).path
    sentence = escape(explanation(report)).replace(path, f"<code>{path}</code>", 1)
    return re.sub(r"(\d)e-(\d)", "\\1e\N{NON-BREAKING HYPHEN}\\2", sentence)


def _levels(report: Report) -> str:
    badges = (
        f'<li class="{"ok" if held else "bad"}">{"✓" if held else "✗"} {escape(level)}</li>'
        for level, held in report.verdicts.items()
    )
    return f'<ul class="levels">{"".join(badges)}</ul>'


def _figures(report: Report) -> str:
    """The five numbers that a reader looks for first."""
    logits = report.logits
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
    head = "".join(
        f"<th>{name}</th>"
        for name in ("positions", "tokens", "relative L2", "KL mean", "KL max", "same top 1")
    )
    rows = "".join(
        f"<tr><td>{bucket.label}</td><td>{bucket.tokens}</td><td>{number(bucket.relative_l2)}</td>"
        f"<td>{number(bucket.kl_mean)}</td><td>{number(bucket.kl_max)}</td>"
        f"<td>{bucket.top1_agreement:.2%}</td></tr>"
        for bucket in report.buckets
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _rule(report: Report) -> str:
    bounds = report.tolerance
    return (
        f"An error may be {bounds['noise_factor']:g} times the reference's own noise, at least "
        f"{number(bounds['least'])} and at most {number(bounds['most'])}."
    )


def _facts(report: Report) -> str:
    facts = {
        **report.dtypes,
        "tokens": "given" if report.seed is None else f"random, seed {report.seed}",
        **report.versions,
    }
    rows = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{''.join(rows)}</dl>"
