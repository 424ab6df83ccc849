"""Whatever wrapped a model when it was saved, in whatever file: it loads and goes back plain."""

import numpy as np
import pytest
import torch
import transformers
from hf_case import SIZES, randomize, stored
from safetensors.torch import save_file
from tiers import examples
from tiny import relative_l2
from torch.distributed import checkpoint as distributed

from jaxllm.interop import load_pretrained, save_pretrained, verify

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

PREFIXES = (
    *("module.", "_orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module.", "model."),
    *("model._orig_mod.", "policy."),
)
NESTED = {
    "model": lambda state: {"model": state, "step": 5},
    "module": lambda state: {"module": state},
    "state_dict": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 1},
    "model, module.": lambda state: {"model": prefixed(state, "module.")},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}},
}
WRAPPED = {
    **{prefix: lambda state, prefix=prefix: prefixed(state, prefix) for prefix in PREFIXES},
    **NESTED,
}
WRITERS = {
    "safetensors": lambda wrapped, folder: save_file(wrapped, folder / "model.safetensors"),
    "bin": lambda wrapped, folder: torch.save(wrapped, folder / "pytorch_model.bin"),
    "legacy": lambda wrapped, folder: torch.save(
        wrapped, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    ),
    "pth": lambda wrapped, folder: torch.save(wrapped, folder / "last.pth"),
    "dcp": lambda wrapped, folder: distributed.save(wrapped, checkpoint_id=folder),
}
CASES = [
    (kind, wrapper)
    for kind in WRITERS
    for wrapper in WRAPPED
    if kind != "safetensors" or wrapper not in NESTED
]
QUICK = {
    *(("safetensors", "model."), ("bin", "state_dict"), ("legacy", "_fsdp_wrapped_module.")),
    *(("pth", "model, module."), ("dcp", "model"), ("dcp", "_orig_mod.module.")),
}


def prefixed(state, prefix):
    """Puts a wrapper's prefix before all names; FSDP wraps the layers as well."""
    inner = prefix if prefix.startswith("_fsdp") else ""
    return {prefix + name.replace("layers.1.", f"layers.1.{inner}"): t for name, t in state.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 2})
    model = randomize(transformers.LlamaForCausalLM(config)).eval()
    folder = tmp_path_factory.mktemp("plain")
    model.save_pretrained(folder)
    tokens = np.arange(320)[None] % 96
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits.numpy()
    return model, stored(folder), tokens, logits


@pytest.mark.cases(2, exhaustive=15)
@pytest.mark.parametrize(("kind", "wrapper"), examples(CASES, *QUICK))
def test_wrappers_are_taken_off(original, kind, wrapper, tmp_path):
    model, plain, tokens, logits = original
    folder = tmp_path / "wrapped"
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    WRITERS[kind](WRAPPED[wrapper](state), folder)
    loaded = load_pretrained(folder)
    assert relative_l2(loaded(tokens).logits, logits) <= 1e-5
    save_pretrained(loaded, tmp_path / "out")
    assert stored(tmp_path / "out") == plain
    assert verify(folder).ok
