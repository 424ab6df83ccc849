"""The generated pages say what is, and what they say holds."""

from pathlib import Path

import encoder_decoder_cases
import hf_cases

from jaxllm.interop.families import FAMILIES

CASES = {**hf_cases.CASES, **encoder_decoder_cases.CASES}
PAGE = Path(__file__).parents[1] / "docs" / "families.md"


def rows() -> dict[str, list[str]]:
    """The cells of the page's table, by its first column."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {first: rest for first, *rest in cells}


def test_the_table_of_families_is_complete():
    assert set(rows()) == set(CASES)
    cased = {name.partition("/")[0] for name in CASES}
    assert cased == {family.name for family in FAMILIES if family.format == "hf"}


def test_the_figures_of_families_hold():
    for name, (tensors, relative_l2, _, differing_bits, not_loaded) in rows().items():
        assert int(tensors) > 0, name
        assert float(relative_l2) <= 1e-5, name
        assert (differing_bits, not_loaded) == ("0", "0"), name
