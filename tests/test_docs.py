"""Pages with tables are complete, and their figures meet the tolerances."""

import re
import tomllib
from pathlib import Path

import encoder_decoder_cases
import hf_cases
import source_cases

from jaxllm.interop.families import FAMILIES

CASES = {**hf_cases.CASES, **encoder_decoder_cases.CASES}
PAGE = Path(__file__).parents[1] / "docs" / "families.md"


RELEASED = PAGE.with_name("released_configs.md")


def rows(table: int = 0, page: Path = PAGE) -> dict[str, list[str]]:
    """The cells of one of a page's tables, keyed by the first column."""
    part = page.read_text().split("\n## ")[table]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {first: rest for first, *rest in cells}


def test_the_families_table_is_complete():
    assert set(rows()) == set(CASES)
    cased = {name.partition("/")[0] for name in CASES}
    listed = {f.name for f in FAMILIES if f.format == "hf" and not f.is_part}
    assert cased == listed - {"t5_encoder", "kimi_k2"}  # which others compute
    assert "`kimi_k2`" in PAGE.read_text()


def test_the_page_names_every_part_that_is_read():
    text = PAGE.read_text()
    assert all(f"`{family.name}`" in text for family in FAMILIES if family.is_part)


def test_the_families_figures_meet_their_tolerances():
    for name, (tensors, relative_l2, _, differing_bits, not_loaded) in rows().items():
        assert int(tensors) > 0, name
        assert float(relative_l2) <= 1e-5, name
        assert (differing_bits, not_loaded) == ("0", "0"), name


def test_the_level_figures_meet_their_tolerances():
    figures = rows(table=1)
    assert set(figures) == {*source_cases.CASES, "llama", "t5", "bart"}
    for name, (bits, fields, *errors, generated, beyond) in figures.items():
        assert (bits, fields, beyond) == ("0", "0", "0"), name
        layers, logits, gradients, step, curve = map(float, errors)
        assert max(layers, logits) <= 1e-5, name
        assert max(gradients, step, curve) <= 1e-4, name
        assert generated.startswith("0 of ") or generated == "none" or float(generated) <= 1e-5


def test_released_configs_are_read_with_logits_of_transformers_or_refused_with_a_reason():
    types = {family.model_type: family for family in FAMILIES if family.format == "hf"}
    for name, (model_type, result, error) in rows(page=RELEASED).items():
        if result.startswith("refused: "):
            assert result.removeprefix("refused: "), name
        elif error == "text part":
            own = types[model_type]
            assert result == "read", name
            assert own.is_part or "vision_config" in own.reads().fields, name
        else:
            assert result == "read", name
            assert float(error) <= 1e-5, name


def test_the_page_on_installing_names_every_extra():
    project = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    described = rows(table=1, page=PAGE.with_name("install.md"))
    assert set(described) == {f"`{name}`" for name in extras}
    for name, requirements in extras.items():
        included = re.findall(r"jaxllm\[(.*?)\]", " ".join(requirements))
        for other in ",".join(included).split(",") if included else ():
            assert f"`{other}`" in described[f"`{name}`"][0], name
