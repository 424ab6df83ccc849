"""Which dimensions of parameters are rows and columns."""

from tiny import TINY, random_model

from jaxllm.config import ExpertsConfig, LayerKind
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters
from jaxllm.train.optimizers.matrices import shape_of


def test_kernels_are_matrices_per_layer_and_expert():
    named = named_parameters(build_abstract(TINY))
    found = {name: shape_of(variable) for name, variable in named.items()}
    assert found["layers.0:3.attn.q_proj.kernel"] == ((1,), (2, 3), (1, 2, 3))
    assert found["layers.0:3.attn.o_proj.kernel"] == ((1, 2), (3,), (1, 2, 3))
    assert found["embed.embedding"] == ((0,), (1,), (0, 1))
    assert found["layers.0:3.attn_norm.scale"] == ((), (), (1,))
    experts = ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24)
    model = random_model(experts=experts, pattern=(LayerKind(mlp="experts"),))
    own = named_parameters(model)
    assert shape_of(own["layers.0:3.mlp.up_proj.kernel"]) == ((2,), (3,), (2, 3))
    assert shape_of(own["layers.0:3.mlp.router.kernel"]) == ((1,), (2,), (1, 2))
