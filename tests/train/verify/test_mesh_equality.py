"""Layout equality: meshes, accumulation, loss chunks, scan and remat match a single device."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiers import examples, exhaustive
from tiny import TINY, random_model

from jaxllm.config import AttentionConfig, ExpertsConfig, HeadConfig, LayerKind, MlpConfig
from jaxllm.params import parameter_shardings, split
from jaxllm.sharding import partition_spec
from jaxllm.train import TrainConfig
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.placement import on_mesh
from jaxllm.train.loss import LossConfig
from jaxllm.train.mesh import make_mesh
from jaxllm.train.step import make_steps
from jaxllm.train.verify.equality import compare_variants
from jaxllm.train.verify.variants import Variant

TOLERANCE = 1e-5  # relative, float32
B, T = 16, 24
# Two key/value heads are not divisible by tensor=4, so they stay unsharded there.
MESHES = {
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "fsdp=4 x tensor=2": {"fsdp": 4, "tensor": 2},
    "tensor=4 x data=2": {"tensor": 4, "data": 2},
    "data=2 x fsdp=2 x tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
}
CHANGES = {
    "num_layers": 2,
    "attention": AttentionConfig(qkv_bias=True, out_bias=True),
    "mlp": MlpConfig(bias=True),
}


def on(mesh: dict[str, int], **changes: object) -> Variant:
    return Variant(mesh=tuple(mesh.items()), **changes)


MIXED = MESHES["fsdp=4 x tensor=2"]
VARIANTS = {
    "one change each": [on(MESHES["fsdp=4 x tensor=2"], loss_chunk=7), on({}, accumulate=2)],
    "meshes": [*map(on, MESHES.values())],
    "changes on meshes": [
        on({"fsdp": 2, "tensor": 2}, accumulate=4),
        on({}, scan_layers=False),
        on(MIXED, scan_layers=False),
        on(MIXED, remat="full"),
        on(MIXED, remat="offload"),
    ],
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(chr(32 + i * i % 91) for i in range(3000)))
    return str(file)


def assert_equal(text: str, chosen: list[Variant], **changes: object) -> None:
    """Checks the variants against a single device, by the noise floor and a fixed tolerance."""
    model = random_model(vocab_size=256, **changes)
    config = TrainConfig(
        output="nowhere",
        steps=10,
        batch_size=B,
        seq_len=T,
        model=model.config,
        data=DataConfig(text=(text,), held_out=0),
    )
    found = compare_variants(config, model, chosen)
    assert found.first is None, found.summary
    assert len(found.outcomes) == len(chosen)
    for outcome in found.outcomes:
        except_updates = [d for d in outcome.differences if d.what != "update"]
        assert max(d.measured for d in except_updates) < TOLERANCE, outcome.variant


@pytest.mark.cases(0, exhaustive=2)
@pytest.mark.parametrize("chosen", exhaustive(VARIANTS))
def test_loss_gradients_and_update_match_a_single_device(text, chosen):
    assert_equal(text, VARIANTS[chosen], **CHANGES)


@pytest.mark.exhaustive
def test_tied_weights_sum_both_their_gradients(text):
    assert_equal(text, [on(MIXED, loss_chunk=7)], head=HeadConfig(tied=True), num_layers=1)


# Documents of 5 to 21 tokens, packed into sequences; layers with windows, chunks, and neither.
PACKED = {
    "num_layers": 3,
    "num_kv_heads": 2,
    "pattern": (LayerKind(attention="window"), LayerKind(), LayerKind(attention="chunk")),
    "attention": AttentionConfig(window=5, chunk=7, softcap=3.0),
}
SEQUENCES = {
    "sequence=8": on({"sequence": 8}),  # parts of 3 tokens, too short to balance
    "sequence=4 x tensor=2": on({"sequence": 4, "tensor": 2}, loss_chunk=7),
    "fsdp=2 x sequence=4": on({"fsdp": 2, "sequence": 4}, remat="full"),
    "fsdp=2 x sequence=2 x tensor=2": on({"fsdp": 2, "sequence": 2, "tensor": 2}, accumulate=2),
    "data=2 x sequence=4, splash": on({"data": 2, "sequence": 4}, kernel="splash"),
    "sequence=2 x tensor=4, triton": on({"sequence": 2, "tensor": 4}, kernel="triton"),
    "splash": on({}, kernel="splash"),
    "triton": on(MIXED, kernel="triton"),
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    texts = ("".join(chr(33 + (i * j) % 91) for j in range(5 + i % 17)) for i in range(200))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize("name", examples(SEQUENCES, "fsdp=2 x sequence=2 x tensor=2"))
def test_split_sequences_and_kernels_match_a_single_device(documents, name):
    assert_equal(documents, [SEQUENCES[name]], **PACKED)


# Every other layer has 4 experts, which are not divisible by expert=8: there they stay unsharded.
SPARSE = {
    "num_layers": 4,
    "pattern": (LayerKind(), LayerKind(mlp="experts")),
    "experts": ExpertsConfig(
        num_experts=4, top_k=2, mlp_dim=24, normalize=True, shared_mlp_dim=40, aux_weight=0.1
    ),
    "mlp.bias": True,
}
EXPERT_MESHES = {
    "tensor=2 x expert=4": {"tensor": 2, "expert": 4},
    "expert=8": {"expert": 8},
    "data=4 x expert=2": {"data": 4, "expert": 2},
    "fsdp=2 x tensor=2 x expert=2": {"fsdp": 2, "tensor": 2, "expert": 2},
    "data=2 x fsdp=2 x tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence=2 x tensor=2 x expert=2": {"sequence": 2, "tensor": 2, "expert": 2},
}


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", ["expert=8", "fsdp=2 x tensor=2 x expert=2", "sequence=2 x tensor=2 x expert=2"]
)
def test_experts_on_a_mesh_match_a_single_device(text, really_compiling, name):
    assert_equal(text, [on(EXPERT_MESHES[name])], **SPARSE)


def test_experts_are_sharded_over_expert_fsdp_and_tensor():
    mesh = make_mesh(devices=jax.devices(), fsdp=2, tensor=2, expert=2)
    placed = {
        name.removeprefix("layers.1:4:2.mlp."): sharding.spec
        for name, sharding in parameter_shardings(random_model(**SPARSE), mesh).items()
    }
    up, down = (
        PartitionSpec(None, "expert", "fsdp", "tensor"),
        PartitionSpec(None, "expert", "tensor", "fsdp"),
    )
    assert placed["gate_proj.kernel"] == placed["up_proj.kernel"] == up
    assert placed["down_proj.kernel"] == down
    assert placed["up_proj.bias"] == PartitionSpec(None, "expert", "tensor")
    assert placed["router.kernel"] == PartitionSpec(None, ("fsdp", "expert"), None)


INVOLUNTARY = "nvoluntary full rematerialization"


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize(
    ("mesh_name", "microbatches"),
    examples(
        [
            *((name, 2) for name in MESHES),
            ("data=2 x fsdp=2 x tensor=2", 1),
            *((name, 1) for name in EXPERT_MESHES if "expert" in name),
        ],
        ("data=2 x fsdp=2 x tensor=2", 1),
    ),
)
def test_the_compiler_reports_no_involuntary_rematerialization(
    mesh_name, microbatches, really_compiling, capfd
):
    sizes = {**MESHES, **EXPERT_MESHES}[mesh_name]
    mesh = make_mesh(devices=jax.devices(), **sizes)
    config = TrainConfig(
        output="nowhere",
        steps=10,
        batch_size=B,
        seq_len=T,
        model=TINY,
        accumulate=microbatches,
        loss=LossConfig(chunk_tokens=7),
    )
    model = random_model(**SPARSE if "expert" in sizes else CHANGES)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model, mesh)
        rows = NamedSharding(mesh, PartitionSpec(*partition_spec("B", (B,), mesh.shape), None))
        batch = {
            "tokens": jax.ShapeDtypeStruct((B, T + 1), jnp.int32, sharding=rows),
            "mask": jax.ShapeDtypeStruct((B, T), bool, sharding=rows),
        }
        compiled = steps.train.lower(steps.abstract_state, batch).compile()
    assert INVOLUNTARY not in capfd.readouterr().err
    if "fsdp" in sizes:  # each device holds a shard of the state, not all of it
        whole = sum(x.size * 4 for x in jax.tree.leaves(steps.abstract_state))
        assert compiled.memory_analysis().argument_size_in_bytes < whole / 3


@pytest.mark.pinned  # jax 0.12 compiles this lookup without a warning
def test_an_involuntary_rematerialization_would_be_seen(really_compiling, capfd):
    """Triggered by a lookup in a table that is sharded over both dimensions."""
    mesh = make_mesh(devices=jax.devices(), data=2, fsdp=2, tensor=2)
    table = jax.ShapeDtypeStruct(
        (96, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    )
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows)

    def lookup(table, tokens):
        found = PartitionSpec(("data", "fsdp"), None, None)
        x = jax.lax.with_sharding_constraint(table[tokens], NamedSharding(mesh, found))
        return jnp.sin(x).sum()

    jax.jit(jax.grad(lookup)).lower(table, tokens).compile()
    assert INVOLUNTARY in capfd.readouterr().err


def test_training_keeps_the_shardings_of_the_state():
    config = TrainConfig(output="nowhere", steps=10, batch_size=B, seq_len=T, model=TINY)
    mesh, model = make_mesh(devices=jax.devices(), **MIXED), random_model()
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, TINY.vocab_size, (B, T + 1)).astype(np.int32),
        "mask": rng.random((B, T)) < 0.5,
    }
    with jax.set_mesh(mesh):
        steps = make_steps(config, model, mesh)
        places = jax.tree.map(lambda x: x.sharding, steps.abstract_state.params)
        state = steps.init(jax.device_put(split(model)[1], places))
        for _ in range(2):
            state, _ = steps.train(state, on_mesh(batch, mesh, B))
    assert int(state.step) == 2
    found = jax.tree.map(lambda x: x.sharding, state)
    assert found == jax.tree.map(lambda x: x.sharding, steps.abstract_state)
