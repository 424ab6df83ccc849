"""Defaults of levels and stages."""

from jaxllm.interop.parity.levels.level import Level, Stage
from jaxllm.interop.parity.report.rows import FieldResult

ROWS = [FieldResult("a", "1", "1"), FieldResult("b", "1", "2")]


def test_levels_and_stages_have_defaults():
    stage = Stage(name="x", compare=lambda pair: ROWS, record=list, check=lambda data, ours: ROWS)
    level = Level(name="x", stage=stage, noun="fields", title="X", caption="")
    assert level.rows(stage.compare(None)) == tuple(ROWS)
    assert stage.details(ROWS) == {}
    assert stage.computes
    assert level.exists_for(None)
    assert level.by_default
    assert level.causes == ()
