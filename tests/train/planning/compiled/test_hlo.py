"""The parser of optimized HLO, on small programs."""

import pytest

from jaxllm.train.planning.compiled.hlo import Shape, parse, shapes

TEXT = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %twice = f32[4]{0} add(%p, %p)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %fused = f32[4]{0} fusion(%state), kind=kLoop, calls=%inner
  ROOT %next = (s32[], f32[4]{0}) tuple(%state, %fused)
}

%condition (state.1: (s32[], f32[4])) -> pred[] {
  %state.1 = (s32[], f32[4]{0}) parameter(0)
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%state.1, %limit), direction=LT
}

ENTRY %main (a: bf16[8,4]) -> f32[4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %loop = (s32[], f32[4]{0}) while(%a), condition=%condition, body=%body{KNOWN}
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=1, metadata={op_name="jit(step)/out"}
}
"""


@pytest.mark.parametrize(
    ("known", "trips"),
    [("", 7), (', backend_config={"known_trip_count":{"n":"3"}}', 3)],
)
def test_computations_run_as_often_as_their_loops(known, trips):
    module = parse(TEXT.replace("{KNOWN}", known))
    assert module.entry == "main"
    assert [module.runs[name] for name in ("main", "body", "inner")] == [1, trips, trips]
    assert module.unknown_loops == []


def test_a_loop_of_unknown_length_is_listed_and_counted_once():
    module = parse(TEXT.replace("{KNOWN}", "").replace("constant(7)", "parameter(1)"))
    assert module.unknown_loops == ["loop"]
    assert module.runs["inner"] == 1


def test_instructions_have_shapes_operands_and_scopes():
    module = parse(TEXT.replace("{KNOWN}", ""))
    out = module.computations["main"][-1]
    assert (out.op, out.operands, out.scope) == ("get-tuple-element", ["loop"], "jit(step)/out")
    assert out.outputs == [Shape("f32", (4,))]
    fused = module.computations["body"][1]
    assert fused.called == ["inner"]
    followed = fused._replace(rest=f'{fused.rest}, metadata={{op_name="x"}}, to_apply={{%a, %b}}')
    assert followed.called == ["inner", "a", "b"]
    assert shapes("(bf16[8,4], s4[2])") == [Shape("bf16", (8, 4)), Shape("s4", (2,))]
    assert [shape.size for shape in shapes("(bf16[8,4], s4[2])")] == [64, 1]


def test_text_that_is_no_program_is_rejected():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule x")


def test_attributes_that_span_lines_do_not_end_a_computation():
    """As libtpu prints those of Pallas kernels."""
    kernel = (
        '  %k = f32[4]{0} custom-call(%state), frontend_attributes={kernel_metadata={\n"a": 1\n}}\n'
    )
    text = TEXT.replace("  ROOT %next", f"{kernel}  ROOT %next").replace("{KNOWN}", "")
    assert [one.name for one in parse(text).computations["body"]] == ["state", "fused", "k", "next"]
