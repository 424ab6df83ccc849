"""The verdict on every layout, in a sentence and as a table."""

import io

from rich.console import Console

from jaxllm.train.verify.outcomes import GRADIENT, Difference, Equality, Outcome

UP_PROJ = "layers.7.mlp.experts.up_proj.kernel"
HONEST = Outcome("fsdp=4 x tensor=2", (Difference(GRADIENT, UP_PROJ, 3e-7, 1e-7),))
WRONG = Outcome(
    "gradient accumulation of 4",
    (Difference("loss", "", 0.03, 1e-7), Difference(GRADIENT, UP_PROJ, 0.02, 1e-7)),
)


def test_the_summary_names_the_first_failure_and_its_gradient():
    assert Equality((HONEST,)).summary == "1 variants compute what one device computes."
    summary = Equality((HONEST, WRONG)).summary
    assert "1 of 2 variants" in summary
    assert f"{WRONG.variant}: its gradient of {UP_PROJ}" in summary


def test_the_table_shows_whole_names_in_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Equality((HONEST, WRONG)).table())
    text = console.export_text()
    assert "…" not in text
    for words in ("✓ fsdp=4", "✗ gradient", "3.0e-07", "2.0e-02", "9.5e-07"):
        assert words in text
