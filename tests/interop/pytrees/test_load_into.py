"""Loading into any pytree: logits equal to transformers', on a mesh, within bounded memory."""

import json
from types import SimpleNamespace

import any_models
import chex
import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from tiny import random_model, relative_l2

from jaxllm.errors import MissingCheckpointError, UserError
from jaxllm.interop import CheckpointError, Rule, load_into, load_pretrained, save_pretrained
from jaxllm.interop.families import Layout
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.loading.streaming import chunk_reader, device_buffers
from jaxllm.interop.loading.streaming.stream import chunk_bytes
from jaxllm.interop.pytrees.leaves import NamedLeaves

TOLERANCE = 1e-5  # relative L2 of logits, float32
KINDS = {"equinox": any_models.equinox_llama, "linen": any_models.linen_llama}


@pytest.fixture(scope="module")
def module():
    return any_models.torch_llama()


@pytest.fixture(scope="module")
def expected(module):
    return any_models.torch_logits(module, any_models.tokens())


@pytest.fixture(scope="module")
def folder(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_transformers_on_one_device_and_on_a_mesh(name, folder, expected, mesh):
    shapes, apply, rules = KINDS[name]()
    run = jax.jit(apply)
    alone = load_into(shapes, folder, rules)
    assert jax.tree.structure(alone) == jax.tree.structure(shapes)
    assert relative_l2(run(alone, any_models.tokens()), expected) <= TOLERANCE

    def place(name, leaf):
        first = leaf.shape.index(48)  # D; one of the axes, in any position
        axes = [None] * first + ["x"]
        return NamedSharding(mesh, PartitionSpec(*axes))

    spread = load_into(shapes, folder, rules, shardings=place)
    for one, other in zip(*map(jax.tree.leaves, (alone, spread)), strict=True):
        assert len(other.sharding.device_set) == 8
        np.testing.assert_array_equal(one, other)
    assert relative_l2(run(spread, any_models.tokens()), expected) <= TOLERANCE


def test_a_state_dict_gives_the_same_numbers_as_its_file(module, folder):
    shapes, _, rules = any_models.linen_llama()
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    found = load_into(flax.core.freeze(shapes), state, rules)
    assert isinstance(found, flax.core.FrozenDict)
    chex.assert_trees_all_equal(found, flax.core.freeze(load_into(shapes, folder, rules)))
    chex.assert_trees_all_equal(found, flax.core.freeze(load_into(shapes, module, rules)))


def test_jaxllms_own_models_are_trees_whose_layers_are_stacked(tmp_path):
    model = random_model()
    save_pretrained(model, tmp_path / "hf", format="hf")
    table = LLAMA.table(model.config, Layout())
    shapes = nnx.eval_shape(lambda: nnx.state(random_model()))
    open_axes = problems(shapes, tmp_path / "hf", table.rules)
    assert all(problem.endswith("has no size: give it in sizes") for problem in open_axes)
    sizes = {axis: table.sizes[axis] for axis in ("r", "h")}  # how RoPE pairs the rows of a head
    given = SimpleNamespace(rules=table.rules, ignored=table.ignored, sizes=sizes)
    found = NamedLeaves.of(load_into(shapes, tmp_path / "hf", given)).arrays
    again = NamedLeaves.of(nnx.state(load_pretrained(tmp_path / "hf"))).arrays
    assert found.keys() == again.keys()
    assert any(name.startswith("layers.0:3.") for name in found)
    for name, array in found.items():
        np.testing.assert_array_equal(array, again[name])


def test_only_shards_are_in_host_memory(folder, mesh, monkeypatch):
    shapes = any_models.equinox_llama().shapes
    made = []
    aligned = device_buffers._aligned
    monkeypatch.setattr(
        device_buffers, "_aligned", lambda shape, dtype: made.append(shape) or aligned(shape, dtype)
    )
    split = NamedSharding(mesh, PartitionSpec("x"))
    tree = load_into(shapes.layers[0].norm1, folder, NORM, shardings=split, strict=False)
    assert made == [(12,)] * 4
    assert tree.weight.addressable_shards[0].data.shape == (12,)


NORM = [Rule("model.norm.weight : D", "weight : D")]


def small(tmp_path, **changes):
    """A checkpoint of two tensors, and a tree for it with further leaves."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((3, 2)), "n": rng.standard_normal(3)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()} | changes
    save_file(arrays, tmp_path / "x.safetensors")
    tree = {"w": jnp.zeros((2, 3)), "n": jnp.zeros(3), "f": jnp.tanh}
    return arrays, tree, tmp_path / "x.safetensors"


RULES = [Rule("w : A B", "w : B A"), Rule("n : A", "n : A")]


def problems(*args, **options):
    with pytest.raises(CheckpointError) as caught:
        load_into(*args, **options)
    return set(caught.value.problems)


def test_all_problems_are_in_one_error(tmp_path):
    _, tree, file = small(tmp_path, extra=np.zeros(1, np.float32), n=np.zeros(5, np.float32))
    rules = [*RULES, Rule("absent : A", "absent_too : A")]
    assert problems({**tree, "more": jnp.zeros(1)}, file, rules) == {
        "no rule covers more of the model",
        "a rule names absent_too, which the model does not have",
        "n: A is 3 from the tree, 5 in the file",
        "absent is missing",
        "extra is unexpected",
    }


def test_unexpected_tensors_are_tolerated_or_ignored_by_declaration(tmp_path, caplog):
    arrays, tree, file = small(tmp_path, extra=np.zeros(1, np.float32))
    found = load_into(tree, file, RULES, strict=False)
    np.testing.assert_array_equal(found["w"], arrays["w"].T)
    assert "extra is unexpected" in caplog.text
    declared = SimpleNamespace(rules=RULES, ignored={"ext*": "a constant"})
    assert load_into(tree, file, declared)["f"] is jnp.tanh


def test_kept_leaves_stay_and_must_have_numbers(tmp_path):
    _, tree, file = small(tmp_path)
    rules = SimpleNamespace(rules=RULES, kept={"table": "computed"})
    table = np.arange(4.0)
    assert load_into({**tree, "table": table}, file, rules)["table"] is table
    shape = jax.ShapeDtypeStruct((4,), np.float32)
    (problem,) = problems({**tree, "table": shape}, file, rules)
    assert problem == "table is kept, but it is only a shape and a dtype: put an array there"


def test_copies_must_equal_their_originals(tmp_path):
    arrays, tree, file = small(tmp_path)
    rules = SimpleNamespace(rules=RULES, tied={"copy": "n"})
    save_file({**arrays, "copy": arrays["n"]}, file)
    load_into(tree, file, rules)
    save_file({**arrays, "copy": -arrays["n"]}, file)
    assert problems(tree, file, rules) == {"copy should be a copy of n but differs from it"}
    save_file({"w": arrays["w"], "copy": arrays["n"]}, file)  # stored under the copy's name alone
    np.testing.assert_array_equal(load_into(tree, file, rules)["n"], arrays["n"])


def test_a_leaf_of_a_copy_is_filled_with_the_original_where_only_that_is_stored(tmp_path):
    arrays, tree, file = small(tmp_path)
    rules = SimpleNamespace(rules=[*RULES, Rule("head : A", "head : A")], tied={"head": "n"})
    found = load_into({**tree, "head": jnp.zeros(3)}, file, rules)
    np.testing.assert_array_equal(found["head"], arrays["n"])
    save_file({**arrays, "head": arrays["n"] + 1}, file)
    assert problems({**tree, "head": jnp.zeros(3)}, file, rules) == {
        "head should be a copy of n but differs from it"
    }


def test_chunks_are_as_small_as_the_memory_allows(tmp_path, monkeypatch):
    arrays, tree, file = small(tmp_path, n=np.arange(5000, dtype=np.float32))
    sizes = []
    read = chunk_reader.Reader.read

    def spy(self, tensor, box, *wanted):
        found = read(self, tensor, box, *wanted)
        sizes.append(found.nbytes)
        return found

    monkeypatch.setattr(chunk_reader.Reader, "read", spy)
    rules = [Rule("w : B A", "w : A B"), Rule("n : C", "n : C")]
    tree = {"w": jnp.zeros((2, 3)), "n": jnp.zeros(5000)}
    found = load_into(tree, file, rules, max_ram="16KiB")
    np.testing.assert_array_equal(found["n"], arrays["n"])
    assert max(sizes) <= chunk_bytes(16 * 1024) < arrays["n"].nbytes
    assert sum(sizes) == arrays["n"].nbytes + arrays["w"].nbytes


def test_a_module_of_nnx_is_filled(tmp_path):
    ours = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    theirs = torch.nn.Linear(2, 3)
    rules = [Rule("weight : B A", "kernel : A B"), Rule("bias : B", "bias : B")]
    x = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    found = load_into(ours, theirs.state_dict(), rules)
    assert isinstance(found, nnx.Linear)
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found(x), expected, rtol=1e-6, atol=1e-6)


def test_dtypes_are_those_stored_or_asked_for(tmp_path):
    _, tree, file = small(tmp_path, n=np.arange(3).astype(ml_dtypes.bfloat16))
    tree = {**tree, "w": tree["w"].astype(jnp.float16)}

    def dtypes(**options):
        found = load_into(tree, file, RULES, **options)
        return found["w"].dtype.name, found["n"].dtype.name

    assert dtypes() == ("float32", "bfloat16")
    assert dtypes(dtype="tree") == ("float16", "float32")
    assert dtypes(dtype="bfloat16") == ("bfloat16", "bfloat16")
    with pytest.raises(UserError, match="dtype='int8' is not one of tree, float32"):
        load_into(tree, file, RULES, dtype="int8")


def test_integers_are_loaded_as_they_are(tmp_path):
    arrays, tree, file = small(tmp_path, n=np.arange(3, dtype=np.int32))
    found = load_into(tree, file, RULES, dtype="bfloat16")
    np.testing.assert_array_equal(found["n"], arrays["n"])
    assert (found["n"].dtype, found["w"].dtype) == (np.int32, ml_dtypes.bfloat16)
    (problem,) = problems(tree, file, RULES, dtype="tree")
    assert problem.startswith("n is float32 in the tree, but int32 in the checkpoint")


def test_what_jax_cannot_hold_is_refused(tmp_path):
    _, tree, file = small(tmp_path, n=np.arange(3))
    (problem,) = problems(tree, file, RULES)
    assert problem.startswith("n is int64; supported are ")


def test_bits_of_nan_survive(tmp_path):
    bits = np.array([0x7FC01234, 0xFF800001, 0x80000000], np.uint32)
    _, tree, file = small(tmp_path, n=bits.view(np.float32))
    found = load_into(tree, file, RULES)
    np.testing.assert_array_equal(np.asarray(found["n"]).view(np.uint32), bits)


def test_what_is_neither_a_path_nor_a_state_dict_is_named():
    with pytest.raises(UserError, match="a list is not a path; modules of PyTorch and state dicts"):
        load_into({}, [], [])


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(MissingCheckpointError, match="does not exist"):
        load_into({}, tmp_path / "no", [])


def test_other_files_and_folders_are_read(tmp_path, module):
    shapes, _, rules = any_models.equinox_llama()
    wanted = jax.tree.leaves(load_into(shapes, module.state_dict(), rules))
    torch.save({"model": module.state_dict()}, tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(json.dumps({}))
    for source in (tmp_path, tmp_path / "weights.pt", str(tmp_path / "weights.pt")):
        found = load_into(shapes, source, rules, max_ram="1MiB")
        for one, other in zip(jax.tree.leaves(found), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
