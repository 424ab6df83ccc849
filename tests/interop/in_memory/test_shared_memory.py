"""With `share`, arrays of equal layout, dtype and device are PyTorch's own memory."""

import jax
import numpy as np
import pytest
import torch
from jax.sharding import Mesh

from jaxllm.interop import from_torch, load_pretrained
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh


def addresses_of(model) -> dict[str, int]:
    arrays = {name: v.get_value() for name, v in named_parameters(model).items()}
    return {
        name: array.unsafe_buffer_pointer()
        for name, array in arrays.items()
        if len(array.sharding.device_set) == 1
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arrays_share_the_memory_of_tensors_of_their_layout(dtype, make_llama):
    module = make_llama().to(dtype)
    shared, copied = addresses_of(from_torch(module, share=True)), addresses_of(from_torch(module))
    embedding, norm = module.model.embed_tokens.weight, module.model.norm.weight
    assert shared["embed.embedding"] == embedding.data_ptr()
    assert shared["final_norm.scale"] == norm.data_ptr()
    theirs = {parameter.data_ptr() for parameter in module.parameters()}
    assert theirs & set(shared.values()) == {embedding.data_ptr(), norm.data_ptr()}
    assert not theirs & set(copied.values())


def test_a_later_change_in_place_reaches_only_a_model_that_shares(make_llama):
    module = make_llama()
    sharing, model = from_torch(module, share=True), from_torch(module)
    before = np.array(model.embed.embedding)
    with torch.no_grad():
        module.model.embed_tokens.weight.mul_(2)
    np.testing.assert_array_equal(np.asarray(sharing.embed.embedding), before * 2)
    np.testing.assert_array_equal(np.asarray(model.embed.embedding), before)


def test_the_memory_outlives_the_module(make_llama):
    module = make_llama()
    model = from_torch(module, share=True)
    expected = module.model.embed_tokens.weight.detach().clone().numpy()
    del module
    torch.zeros(96, 48).uniform_()
    np.testing.assert_array_equal(np.asarray(model.embed.embedding), expected)


@pytest.mark.parametrize("why", ["dtype", "mesh", "other device", "strides"])
def test_everything_else_is_copied(why, make_llama, tmp_path):
    module = make_llama()
    if why == "strides":
        weight = module.model.embed_tokens.weight
        weight.data = weight.data.t().contiguous().t()
    options = {
        "dtype": {"dtype": "bfloat16"},
        "mesh": {"mesh": make_mesh(fsdp=2, tensor=4)},
        "other device": {"mesh": make_mesh(devices=jax.devices()[3:4])},
        "strides": {},
    }[why]
    assert isinstance(options.get("mesh", None), Mesh | None)
    model = from_torch(module, share=True, **options)
    assert module.model.embed_tokens.weight.data_ptr() not in addresses_of(model).values()
    module.save_pretrained(tmp_path)
    expected = load_pretrained(tmp_path, **options)
    for name, variable in named_parameters(model).items():
        found, wanted = variable.get_value(), named_parameters(expected)[name].get_value()
        assert found.sharding == wanted.sharding
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
