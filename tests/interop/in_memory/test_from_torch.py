"""Modules and state dicts become the same models as the files that their own code writes."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
import torch
from hf_cases import CASES, LENGTH
from tiny import relative_l2

from jaxllm.errors import UserError
from jaxllm.interop import CheckpointError, from_torch, load_pretrained, save_pretrained, to_torch
from jaxllm.params import named_parameters, parameter_shardings
from jaxllm.train import make_mesh


def bits_of(model) -> dict[str, tuple]:
    arrays = {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_module_gives_the_model_of_its_files(dtype, make_llama, tmp_path):
    module = make_llama(tie_word_embeddings=True).to(dtype)
    module.save_pretrained(tmp_path / "saved")
    loaded, model = load_pretrained(tmp_path / "saved"), from_torch(module)
    assert model.config == loaded.config
    assert bits_of(model) == bits_of(loaded)
    nowhere = {"directory": "", "checkpoint": "", "config": ""}
    assert dataclasses.replace(model.origin, **nowhere) == dataclasses.replace(
        loaded.origin, **nowhere
    )


def test_logits_match(make_llama):
    module = make_llama()
    tokens = np.random.default_rng(0).integers(0, 96, (1, LENGTH))
    with torch.no_grad():
        expected = module(torch.tensor(tokens)).logits.numpy()
    logits = jax.jit(lambda model: model(tokens).logits)(from_torch(module))
    assert relative_l2(logits, expected) <= 1e-5


def test_tensors_of_any_kind_are_equal(make_llama):
    """NumPy, strided, expanded and wrapped tensors, and a config in each of its forms."""
    module = make_llama()
    state = module.state_dict()
    state["model.norm.weight"] = torch.tensor(1.25).expand(48)
    expected = bits_of(from_torch(state, config=module.config))
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in state.items()}
    arrays = {f"module._orig_mod.{name}": tensor.numpy() for name, tensor in state.items()}
    trainers = {"model": {n: torch.nn.Parameter(t) for n, t in state.items()}, "step": 3}
    assert not strided["lm_head.weight"].is_contiguous()
    for given in (strided, arrays, trainers):
        assert bits_of(from_torch(given, config=module.config.to_dict())) == expected


def test_wrapped_modules_and_paths_of_configs_are_read(make_llama, tmp_path):
    module = make_llama()
    expected = bits_of(from_torch(module))
    module.config.save_pretrained(tmp_path)
    compiled = torch.compile(module, backend="eager")
    nested = torch.nn.Module()
    nested.module = compiled
    assert bits_of(from_torch(nested)) == expected
    for path in (tmp_path, str(tmp_path / "config.json")):
        model = from_torch(module.state_dict(), config=path)
        assert bits_of(model) == expected
        assert model.origin.directory == str(tmp_path)
    assert from_torch(module).origin.directory == ""


def test_a_refused_field_can_be_allowed_as_the_error_says(make_llama, caplog):
    module = make_llama()
    config = module.config.to_dict() | {"hidden_act": "mish"}
    with pytest.raises(CheckpointError, match=r"allow=\['hidden_act=silu'\]"):
        from_torch(module.state_dict(), config=config)
    model = from_torch(module.state_dict(), config=config, allow=["hidden_act=silu"])
    assert bits_of(model) == bits_of(from_torch(module))
    assert "hidden_act='mish' is taken as 'silu', as allowed" in caplog.text


def test_each_device_gets_only_its_shards(make_llama):
    module, mesh = make_llama(), make_mesh(fsdp=2, tensor=2, data=2)
    model = from_torch(module, mesh=mesh, max_ram="4KiB")
    wanted = parameter_shardings(model, mesh)
    for name, variable in named_parameters(model).items():
        assert variable.get_value().sharding == wanted[name], name
    assert bits_of(model) == bits_of(from_torch(module))


def test_later_changes_of_the_module_do_not_change_the_model(make_llama):
    module = make_llama()
    model = from_torch(module)
    before = bits_of(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert bits_of(model) == before


def test_narrowing_beyond_the_range_is_counted(make_llama, caplog):
    module = make_llama()
    with torch.no_grad():
        module.model.norm.weight[:3] = 1e6
        module.lm_head.weight[0, 0] = -1e7
    with caplog.at_level(logging.WARNING):
        model = from_torch(module, dtype="float16")
    assert "overflow: 4 beyond 65504" in caplog.text
    assert "model.norm.weight: 3 of 48, up to 1e+06" in caplog.text
    assert "lm_head.weight: 1 of 4,608, up to 1e+07" in caplog.text
    assert float(model.final_norm.scale[0]) == 65504


def test_every_problem_is_listed_at_once(make_llama):
    module = make_llama()
    state = module.state_dict()
    state["model.norm.weight"] = torch.zeros(40)
    state["model.layers.0.mlp.up_projection.weight"] = state.pop(
        "model.layers.0.mlp.up_proj.weight"
    )
    config = module.config.to_dict() | {"hidden_act": "tanh", "mlp_bias": "yes"}
    with pytest.raises(CheckpointError) as raised:
        from_torch(state, config=config)
    text = str(raised.value)
    assert text.startswith("state dict:\n  config.json: ")
    for part in ("hidden_act", "mlp_bias"):
        assert part in text
    with pytest.raises(CheckpointError) as raised:
        from_torch(state, config=module.config)
    text = str(raised.value)
    assert "model.layers.0.mlp.up_proj.weight is missing; did you mean" in text
    assert "model.layers.0.mlp.up_projection.weight is unexpected" in text
    assert "model.norm.weight: D is 48 from the config, 40 in the file" in text
    state["model.norm.weight"] = torch.zeros(48)
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(
        state["model.layers.0.mlp.up_projection.weight"].shape
    )
    from_torch(state, config=module.config, strict=False)


def test_a_base_model_gives_hidden_states(make_llama):
    module = make_llama(tie_word_embeddings=True)
    model = from_torch(module.model)
    assert model.config.head.kind == "none"
    tokens = np.arange(20)[None]
    with torch.no_grad():
        expected = module.model(torch.tensor(tokens)).last_hidden_state.numpy()
    assert relative_l2(model(tokens).logits, expected) < 1e-5
    again = to_torch(model)
    state = module.model.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_meta_module_is_refused_by_name(make_llama):
    with torch.device("meta"):
        module = type(make_llama())(make_llama().config)
    with pytest.raises(CheckpointError) as raised:
        from_torch(module)
    assert "LlamaForCausalLM:\n  model.embed_tokens.weight is on the meta device" in str(
        raised.value
    )
    assert "model.layers.{0..1}.self_attn.q_proj.weight is on the meta device" in str(raised.value)


def test_what_is_no_model_is_named(make_llama):
    with pytest.raises(UserError, match="a list is neither a PyTorch module nor a state dict"):
        from_torch([1])
    with pytest.raises(UserError, match="a state dict has no config: give config=, a config of"):
        from_torch(make_llama().state_dict())
    with pytest.raises(UserError, match="Linear has no config: give config="):
        from_torch(torch.nn.Linear(2, 2))
    trainer = torch.nn.ModuleDict({"net": make_llama(), "loss": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError, match="ModuleDict has no config, but its part net has one: give"):
        from_torch(trainer)
    with pytest.raises(CheckpointError, match="the config of dict: model_type 'lama' is not"):
        from_torch(make_llama().state_dict(), config={"model_type": "lama"})
    with pytest.raises(UserError, match="config=3 is not a config of transformers"):
        from_torch(make_llama().state_dict(), config=3)
    with pytest.raises(UserError, match="dtype='fp8' is not one of"):
        from_torch(make_llama(), dtype="fp8")


def test_a_model_from_memory_is_saved_as_files_are_named(tmp_path):
    """In memory, transformers 5 fuses experts and renames a head; its files keep the names."""
    for name in ("mixtral", "gpt_neox"):
        module = CASES[name].build()
        module.save_pretrained(tmp_path / name)
        save_pretrained(from_torch(module), tmp_path / f"{name} again")
        expected = bits_of(load_pretrained(tmp_path / name))
        again = load_pretrained(tmp_path / f"{name} again")
        assert bits_of(again) == expected
        assert again.origin.layout == load_pretrained(tmp_path / name).origin.layout
