"""The recorded bytes that a decoded token moves in HBM are near the least possible."""

import json

import pytest

from benchmarks import decode_bytes
from jaxllm.train.planning.compiled.hlo import parse

FOUND = json.loads(decode_bytes.RECORDED.read_text())

# A loop that writes one token to a cache and reads all of it, and a condition that greedy decoding
# skips.
PROGRAM = """HloModule decode

%write (c: bf16[8,64], i: s32[1,1], u: bf16[1,64]) -> bf16[8,64] {
  %c = bf16[8,64]{1,0} parameter(0)
  %i = s32[1,1]{1,0} parameter(1)
  %u = bf16[1,64]{1,0} parameter(2)
  ROOT %s = bf16[8,64]{1,0} scatter(%c, %i, %u), to_apply=%keep
}

%keep (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  ROOT %b = bf16[] parameter(1)
}

%sampled (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  ROOT %y = f32[8,8]{1,0} exponential(%x)
}

%body (t: (bf16[8,64], bf16[64,8], s32[1,1], bf16[1,64], f32[8,8])) -> (bf16[8,64], f32[8,8]) {
  %t = (bf16[8,64]{1,0}, bf16[64,8]{1,0}, s32[1,1]{1,0}, bf16[1,64]{1,0}) parameter(0)
  %old = bf16[8,64]{1,0} get-tuple-element(%t), index=0
  %w = bf16[64,8]{1,0} get-tuple-element(%t), index=1
  %at = s32[1,1]{1,0} get-tuple-element(%t), index=2
  %new = bf16[1,64]{1,0} get-tuple-element(%t), index=3
  %cache = bf16[8,64]{1,0} fusion(%old, %at, %new), kind=kLoop, calls=%write
  %mixed = f32[8,8]{1,0} dot(%cache, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %drawn = f32[8,8]{1,0} conditional(%at, %mixed), branch_computations={%sampled}
  ROOT %out = (bf16[8,64]{1,0}, f32[8,8]{1,0}) tuple(%cache, %drawn)
}

%more (t: (bf16[8,64])) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (t: (bf16[8,64])) -> (bf16[8,64]) {
  %t = (bf16[8,64]{1,0}) parameter(0)
  ROOT %loop = (bf16[8,64]{1,0}) while(%t), condition=%more, body=%body
}
"""


def test_bytes_of_a_loop_are_those_of_greedy_decoding():
    module = parse(PROGRAM)
    assert decode_bytes.loops_of(module) == ["body"]
    write = 4 + 2 * 64 * 2  # the index; the token, read and written in place
    read = 8 * 64 * 2 + 64 * 8 * 2 + 8 * 8 * 4
    assert decode_bytes.loop_bytes(module)("body") == write + read


@pytest.mark.parametrize("name", decode_bytes.CASES)
def test_a_token_moves_little_more_than_the_weights_and_the_cache(name):
    entry = FOUND[name]
    assert 1 <= entry["per_token"] / (entry["weights"] + entry["cache"]) <= 1.15
    assert entry["donated"] >= entry["cache"]


def test_the_page_has_what_is_recorded():
    page = decode_bytes.PAGE.read_text()
    assert decode_bytes.with_table(page) == page
