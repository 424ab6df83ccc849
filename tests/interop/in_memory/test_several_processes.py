"""Models whose arrays span processes come from memory and go there in every process."""

import pytest
from together import run_together

RUN = """
import os, sys
import jax
count, number = (int(os.environ[f"JAX_{name}"]) for name in ("NUM_PROCESSES", "PROCESS_ID"))
jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, number)
import torch, transformers
from jaxllm.interop import from_torch, to_torch
from jaxllm.params import named_parameters
from jaxllm.sharding import spans_processes
from jaxllm.train import make_mesh

module = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = from_torch(module, mesh=make_mesh(fsdp=2, tensor=2))
assert any(spans_processes(v.get_value()) for v in named_parameters(model).values())
own = module.state_dict()
state = to_torch(model, max_ram="64KiB")
assert list(state) == list(own)
assert all(torch.equal(state[name], own[name]) for name in own)
other = transformers.AutoModelForCausalLM.from_config(module.config)
to_torch(model, into=other, max_ram="64KiB")
assert all(torch.equal(tensor, own[name]) for name, tensor in other.state_dict().items())
print("equal", flush=True)
"""


@pytest.mark.exhaustive
def test_every_process_gets_all_of_the_model(make_llama, tmp_path):
    make_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    arguments = ["-c", RUN, str(tmp_path)]
    outputs = run_together(arguments, arguments, devices=2)
    assert all(out.endswith("equal\n") for out, _ in outputs), outputs  # after what Gloo says
