"""HBM traffic of compiled programs, on a small one."""

from jaxllm.train.planning.compiled.hlo import parse
from jaxllm.train.planning.compiled.hlo_traffic import is_matmul, largest_arrays, vector_traffic

TEXT = """%fused (p: f32[256]) -> f32[256] {
  %p = f32[256] parameter(0)
  ROOT %e = f32[256] exponential(%p)
}

%fused.dot (q: f32[16,16]) -> f32[16,16] {
  %q = f32[16,16] parameter(0)
  ROOT %d = f32[16,16] dot(%q, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256] parameter(0)
  %x = f32[256] fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/exp"}
  %b = f32[16,16] bitcast(%x)
  %y = f32[16,16] fusion(%b), kind=kOutput, calls=%fused.dot
  %k = f32[16,16] custom-call(%y), custom_call_target="__cublas$gemm"
  %part = f32[64] slice(%x), slice={[0:64]}
  ROOT %z = f32[256] dynamic-update-slice(%x, %part, %a)
}
"""


def test_matmuls_and_what_is_inside_fusions_do_not_count():
    module = parse(TEXT)
    names = {one.name: is_matmul(module, one) for one in module.computations["main"]}
    assert [name for name, found in names.items() if found] == ["y", "k"]
    exponential, part, update = 2 * 1024, 2 * 256, 2 * 256
    assert vector_traffic(module) == exponential + part + update


def test_the_largest_arrays_are_listed_with_their_place():
    assert largest_arrays(parse(TEXT), 1)[0][:2] == ("f32[256]", 1024)
    found = largest_arrays(parse(TEXT))
    assert ("f32[256]", 1024, "jit(step)/exp") in found
    assert len(found) == 4  # of `main` alone


SLICED = """%body (whole: f32[8,64], row: f32[1,64], i: s32[]) -> f32[8,64] {
  %whole = f32[8,64] parameter(0)
  %row = f32[1,64] parameter(1)
  %i = s32[] parameter(2)
  %twice = f32[1,64] add(%row, %row)
  ROOT %put = f32[8,64] dynamic-update-slice(%whole, %twice, %i, %i)
}

%read (all: f32[8,64], at: s32[]) -> f32[1,64] {
  %all = f32[8,64] parameter(0)
  %at = s32[] parameter(1)
  %one = f32[1,64] dynamic-slice(%all, %at, %at), dynamic_slice_sizes={1,64}
  ROOT %minus = f32[1,64] negate(%one)
}

ENTRY %main (a: f32[8,64], b: f32[1,64], n: s32[]) -> f32[8,64] {
  %a = f32[8,64] parameter(0)
  %b = f32[1,64] parameter(1)
  %n = s32[] parameter(2)
  %loop_dynamic_update_slice_fusion = f32[8,64] fusion(%a, %b, %n), kind=kLoop, calls=%body
  ROOT %loop_negate_fusion = f32[1,64] fusion(%loop_dynamic_update_slice_fusion, %n), calls=%read
}
"""


def test_of_what_a_fusion_slices_or_updates_in_place_the_part_counts():
    row, index = 256, 4
    assert vector_traffic(parse(SLICED)) == (2 * row + index) + (2 * row + index)
