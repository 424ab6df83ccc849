"""The arguments of `LLM`: read from JSON, and refused where they do not fit together."""

import dataclasses

import pytest

from jaxllm.interop.reference.llm.arguments import ModelArgs, MoEArgs, Size, VisionArgs

ARGS = ModelArgs(dim=48, n_layers=4, n_heads=6, n_kv_heads=2, vocab_size=90)
IMAGE = {
    "image_size": {"height": 8, "width": 8},
    "patch_size": {"height": 2, "width": 2},
    **{"dim": 32, "n_layers": 2, "n_heads": 2, "mlp_ratio": 2.0, "output_dim": 24},
    "pixel_shuffle_ratio": 0.5,
}


def read(**fields: object) -> ModelArgs:
    return ModelArgs.from_json(dataclasses.asdict(ARGS) | fields)


def test_json_comes_back_with_its_parts():
    args = read(vision_args=IMAGE, moe_args={"num_experts": 4, "top_k": 2})
    assert args.moe_args == MoEArgs(num_experts=4, top_k=2)
    assert isinstance(args.vision_args, VisionArgs)
    assert args.vision_args.image_size == Size(height=8, width=8)
    assert ModelArgs.from_json(dataclasses.asdict(args)) == args


def test_null_is_the_default():
    """`params.json` of Llama 3 has null where Llama 4's code has a number."""
    args = read(n_kv_heads=None, rope_theta=None, moe_args=None)
    assert args.rope_theta == 500000.0
    assert args.num_kv_heads == 6
    assert ARGS.num_kv_heads == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n_heads": 5}, "dim=48 does not split into n_heads=5"),
        ({"n_kv_heads": 4}, "n_heads=6 is not a multiple of n_kv_heads=4"),
        ({"head_dim": 16}, "head_dim=16 is not dim / n_heads = 8"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(ARGS, **changes)


def test_parts_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="top_k=5 is not between 1 and num_experts=4"):
        MoEArgs(num_experts=4, top_k=5)
    for changes, complaint in (
        ({"n_heads": 3}, "dim=32 does not split into n_heads=3"),
        ({"image_size": {"height": 8, "width": 9}}, "image width 9 is not a multiple"),
    ):
        with pytest.raises(ValueError, match=complaint):
            read(vision_args=IMAGE | changes)


def test_a_name_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="n_hats"):
        read(n_hats=1)
    with pytest.raises(ValueError, match="num_hats"):
        read(moe_args={"num_experts": 4, "num_hats": 1})
