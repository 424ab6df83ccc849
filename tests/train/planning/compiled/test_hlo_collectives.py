"""Collectives read from HLO: groups of devices in every notation, bytes, kinds and mesh axes."""

import pytest

from jaxllm.train.planning.compiled.hlo import parse
from jaxllm.train.planning.compiled.hlo_collectives import axes_of, device_groups, read_collectives

MESH = {"data": 2, "fsdp": 4}
ROWS = [(0, 1, 2, 3), (4, 5, 6, 7)]
COLUMNS = [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ROWS),
        ("replica_groups=[2,4]<=[8]", ROWS),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ROWS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", COLUMNS),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}", ROWS),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([8]<=[2,4]T(1,0)) {'y'}", COLUMNS),
        ("source_target_pairs={{0,4},{1,5},{2,6},{3,7}}", COLUMNS),
        ("channel_id=1", [tuple(range(8))]),
    ],
)
def test_groups_are_read_in_every_notation(text, groups):
    assert sorted(device_groups(text, 8)) == groups
    expected = {id(ROWS): ("fsdp",), id(COLUMNS): ("data",)}.get(id(groups), ("data", "fsdp"))
    assert axes_of(groups, MESH) == expected


@pytest.mark.parametrize(
    ("line", "kind", "moved"),
    [
        ("bf16[8,16] all-gather(%a)", "all-gather", 256 * 3 / 4),
        ("(bf16[2,16], bf16[8,16]) all-gather-start(%a)", "all-gather", 256 * 3 / 4),
        ("f32[4] reduce-scatter(%a)", "reduce-scatter", 64 * 3 / 4),
        ("((f32[16]), f32[4]) reduce-scatter-start(%a)", "reduce-scatter", 64 * 3 / 4),
        ("f32[16] all-reduce(%a), to_apply=%add", "all-reduce", 64 * 6 / 4),
        ("(f32[8], f32[8]) all-reduce-start(%a, %a)", "all-reduce", 64 * 6 / 4),
        ("f32[16] all-to-all(%a)", "all-to-all", 64 * 3 / 4),
        ("(f32[16], f32[16], u32[], u32[]) collective-permute-start(%a)", "collective-permute", 64),
        # One side has room for the worst case.
        ("f32[32] ragged-all-to-all(%a, %b, %c)", "ragged-all-to-all", 16 * 3 / 4),
        (
            "((f32[64], f32[16], s64[8]), f32[16]) ragged-all-to-all-start(%a, %b, %c)",
            *("ragged-all-to-all", 64 * 3 / 4),
        ),
    ],
)
def test_bytes_are_those_that_a_device_receives(line, kind, moved):
    text = (
        "ENTRY %main (a: f32[4]) -> f32[4] {\n  %a = f32[4] parameter(0)\n"
        f"  %c = {line}, replica_groups=[2,4]<=[8]\n}}\n"
    )
    (found,) = read_collectives(parse(text), MESH)
    assert (found.kind, found.axes, found.moved) == (kind, ("fsdp",), moved)


def test_an_all_reduce_in_a_fusion_that_scatters_is_a_reduce_scatter_and_counts_once():
    fusion = """%all-reduce-scatter{I} (p: f32[16]) -> f32[4] {
  %p = f32[16] parameter(0)
  %r = f32[16] all-reduce(%p), channel_id=5, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = f32[4] dynamic-slice(%r), dynamic_slice_sizes={4}
}
"""
    text = fusion.replace("{I}", ".1") + fusion.replace("{I}", ".2")
    text += """ENTRY %main (a: f32[16]) -> f32[4] {
  %a = f32[16] parameter(0)
  %x = f32[4] fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %y = f32[4] fusion(%a), kind=kCustom, calls=%all-reduce-scatter.2
}
"""
    (found,) = read_collectives(parse(text), MESH)
    assert (found.kind, found.runs, found.moved) == ("reduce-scatter", 1, 64 * 3 / 4)
    other = text.replace("to_apply=%add", "to_apply=%add.7", 1)
    (found,) = read_collectives(parse(other), MESH)
    assert found.runs == 2
    cloned = text.replace("to_apply=%add", "to_apply=%add.clone", 1)
    (found,) = read_collectives(parse(cloned), MESH)
    assert found.runs == 1
