"""Setup of a run: what does not fit the config is refused before anything is trained."""

import dataclasses
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from tiny import TINY, random_model
from tokenizer_kinds import save_tokenizer

from jaxllm.checkpoint_origin import KEPT, Origin
from jaxllm.config import HeadConfig, NumericsConfig
from jaxllm.errors import CheckpointError, UserError
from jaxllm.models import Decoder
from jaxllm.params import named_parameters
from jaxllm.sharding import MESH_AXES
from jaxllm.tokenization import load_tokenizer
from jaxllm.train import ConfigError, TrainConfig
from jaxllm.train.checkpoint import open_checkpoints
from jaxllm.train.config import from_stored, save_config, to_dict
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.restarts.changes import find_changes
from jaxllm.train.setup import (
    begin_run,
    keep_origin,
    make_batches,
    make_run_mesh,
    model_to_train,
    resume_run,
    with_tokenizer,
)

MODEL = dataclasses.replace(TINY, vocab_size=256)
MESH = MeshConfig(fsdp=4, tensor=2)
RUN = TrainConfig(output="run", steps=9, batch_size=8, seq_len=16, model=MODEL, mesh=MESH)


@pytest.fixture
def with_text(tmp_path) -> TrainConfig:
    (tmp_path / "text.txt").write_text("a mesh is a shape of devices. " * 40)
    data = DataConfig(text=(str(tmp_path / "text.txt"),), held_out=0)
    return dataclasses.replace(RUN, output=str(tmp_path / "run"), data=data)


def test_too_large_a_batch_is_refused_before_its_rows_are_numbered(with_text, monkeypatch):
    monkeypatch.setattr("jaxllm.train.setup.own_rows", None)
    run = dataclasses.replace(with_text, batch_size=2**30)
    with pytest.raises(ConfigError, match=r"there are only [0-9]+ training examples"):
        make_batches(run, random_model(vocab_size=256), make_run_mesh(run))


def test_the_mesh_must_split_the_batch():
    assert dict(make_run_mesh(RUN).shape) == {axis: getattr(MESH, axis) for axis in MESH_AXES}
    with pytest.raises(ConfigError, match=r"= 2 sequences is not divisible by data x fsdp = 4"):
        make_run_mesh(dataclasses.replace(RUN, accumulate=4))
    with pytest.raises(ConfigError, match="needs 3 devices, but there are 8"):
        make_run_mesh(dataclasses.replace(RUN, mesh=MeshConfig(data=3)))


def test_data_that_do_not_fit_are_a_config_error(with_text):
    mesh = make_run_mesh(with_text)
    assert make_batches(with_text, random_model(vocab_size=256), mesh).examples_per_epoch > 0
    with pytest.raises(ConfigError, match=r"256 tokens.*vocab_size is 96"):
        make_batches(with_text, random_model(), mesh)
    once = dataclasses.replace(with_text, data=dataclasses.replace(with_text.data, max_epochs=1))
    make_batches(once, random_model(vocab_size=256), mesh)
    assert find_changes(to_dict(with_text), once, 0) == []
    with pytest.raises(ConfigError, match=r"text\.txt',\) runs out: 10 steps take 80"):
        make_batches(dataclasses.replace(once, steps=10), random_model(vocab_size=256), mesh)


def test_the_model_is_abstract_unless_weights_are_given():
    given = random_model(vocab_size=256)
    finetune = dataclasses.replace(RUN, model=None, init_from="somewhere", remat="full")
    fresh, kept = model_to_train(RUN, None), model_to_train(finetune, given)
    for config, model, message in [
        (RUN, given, "both weights and a new model are given"),
        (finetune, None, "init_from='somewhere' names a checkpoint, but no model was given"),
        (
            finetune,
            random_model(numerics=NumericsConfig(param_dtype="bfloat16")),
            "the parameters are bfloat16, which loses small updates",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            model_to_train(config, model)
    arrays = {type(v.get_value()) for v in named_parameters(fresh).values()}
    assert arrays == {jax.ShapeDtypeStruct}
    assert kept.config.remat == "full"
    theirs = named_parameters(given)
    for name, variable in named_parameters(kept).items():
        np.testing.assert_array_equal(variable.get_value(), theirs[name].get_value())


def test_a_run_chooses_the_dtypes_that_its_model_computes_and_reduces_in():
    optimizer = OptimizerConfig(reduce_dtype="bfloat16")
    config = dataclasses.replace(RUN, dtype="bfloat16", optimizer=optimizer)
    finetune = dataclasses.replace(config, model=None, init_from="x")
    for model in (model_to_train(config, None), model_to_train(finetune, random_model())):
        assert model.config.numerics == NumericsConfig(dtype="bfloat16", reduce_dtype="bfloat16")
    with pytest.raises(UserError, match=r"needs numerics.dtype='bfloat16'"):
        model_to_train(dataclasses.replace(config, dtype=None), None)


def test_a_model_beyond_its_config_could_not_be_resumed():
    model = random_model(vocab_size=256)
    model.gain = nnx.Param(np.ones(3, np.float32))
    finetune = dataclasses.replace(RUN, model=None, init_from="somewhere")
    with pytest.raises(CheckpointError, match=r"gain: \(3,\) in the model, none by the config"):
        model_to_train(finetune, model)


def test_a_run_keeps_the_files_of_the_origin_that_it_began_with(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer.json").write_text("1")
    model = random_model()
    keep_origin(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    directory = str(tmp_path / "base")
    model.origin = Origin(family="llama", config="{}", layout="{}", directory=directory)
    for text in ("1", "2"):
        (tmp_path / "base" / "tokenizer.json").write_text(text)
        keep_origin(model, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [KEPT]
    assert (tmp_path / "run" / KEPT / "tokenizer.json").read_text() == "1"


def test_the_initial_state_is_sharded_and_resumes_only_an_equal_run(with_text):
    mesh = make_run_mesh(with_text)
    folder = Path(with_text.output, "checkpoints")
    with jax.set_mesh(mesh):
        run = begin_run(with_text, None, mesh)
        assert int(run.state.step) == 0
        found = jax.tree.map(lambda x: x.sharding, run.state.params)
        assert found == jax.tree.map(lambda x: x.sharding, run.steps.abstract_state.params)
        with open_checkpoints(folder, 2) as checkpoints:
            checkpoints.save(run.state, with_text, run.model, run.batches.fingerprint())
        again = resume_run(dataclasses.replace(with_text, keep=9), mesh, folder / "0")
        chex.assert_trees_all_equal(again.state, run.state, strict=True)
        changed = dataclasses.replace(with_text, seed=1)
        with pytest.raises(ConfigError, match=r"cannot resume .*: seed: 0 in the checkpoint"):
            resume_run(changed, mesh, folder / "0")


@pytest.fixture
def fine_tuned(with_text, tmp_path) -> tuple[TrainConfig, Decoder]:
    """A run that begins with a checkpoint of 11 words, whose tokenizer it does not name."""
    start = save_tokenizer("words, end", tmp_path / "start")
    model = random_model(vocab_size=11)
    model.origin = Origin(family="llama", config="{}", layout="{}", directory=str(start))
    return dataclasses.replace(with_text, model=None, init_from=str(start)), model


def test_the_tokenizer_beside_the_start_is_used_without_being_named(fine_tuned, tmp_path):
    config, model = fine_tuned
    assert with_tokenizer(config, model).tokenizer == config.init_from
    assert make_batches(config, model, make_run_mesh(config)).examples_per_epoch > 0
    named = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer="bytes"))
    assert with_tokenizer(named, model).tokenizer == "bytes"
    # A run that begins with this run, and one that begins with a native checkpoint of the model.
    Path(config.output).mkdir()
    save_config(config, Path(config.output, "config.yaml"))
    native = tmp_path / "native"
    native.mkdir()
    for start in (config.output, str(native)):
        again = dataclasses.replace(config, init_from=start, output="again")
        assert with_tokenizer(again, model).tokenizer == config.init_from


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_run_that_was_moved_has_its_tokenizer(fine_tuned, with_text, tmp_path, name):
    config, model = fine_tuned
    start, run = Path(config.init_from), tmp_path / "moved"
    data = dataclasses.replace(config.data, tokenizer=str(start / name))
    config = dataclasses.replace(config, data=data)
    keep_origin(model, run)
    resumed = dataclasses.replace(config, output=str(run))  # which knows only the old place
    unnamed = dataclasses.replace(resumed, data=with_text.data)
    assert with_tokenizer(resumed, model).tokenizer == str(start / name)
    start.rename(tmp_path / "elsewhere")
    for each in (resumed, unnamed):
        assert with_tokenizer(each, model).tokenizer == str(run / KEPT)
    model.origin = dataclasses.replace(model.origin, directory=str(run / KEPT))
    assert with_tokenizer(config, model).tokenizer == str(run / KEPT)
    other = dataclasses.replace(config, data=dataclasses.replace(data, tokenizer="other"))
    assert with_tokenizer(other, model).tokenizer == "other"  # of which the run has no copy


@pytest.mark.parametrize("name", ["", "tokenizer.json", "other.json"])
def test_a_new_model_s_run_keeps_the_tokenizer_that_its_data_name(with_text, tmp_path, name):
    tok = save_tokenizer("words, end", tmp_path / "tok")
    if name == "other.json":
        (tok / "tokenizer.json").rename(tok / name)
    model = random_model(vocab_size=11)
    data = dataclasses.replace(with_text.data, tokenizer=str(tok / name))
    config = dataclasses.replace(with_text, output=str(tmp_path / "moved"), data=data)
    keep_origin(model, Path(config.output), data)
    assert with_tokenizer(config, model).tokenizer == str(tok / name)
    shutil.rmtree(tok)
    found = with_tokenizer(config, model).tokenizer
    assert found == str(tmp_path / "moved" / KEPT)
    assert load_tokenizer(found).eos_id is not None
    keep_origin(model, tmp_path / "of bytes", with_text.data)
    assert not (tmp_path / "of bytes").exists()


def test_a_run_of_a_new_model_was_trained_on_bytes_and_goes_on_with_them(with_text, tmp_path):
    Path(with_text.output).mkdir()
    large = dataclasses.replace(with_text, model=dataclasses.replace(MODEL, vocab_size=300))
    save_config(large, Path(large.output, "config.yaml"))
    again = dataclasses.replace(large, model=None, init_from=large.output, output="again")
    assert with_tokenizer(large, random_model(vocab_size=300)).tokenizer is None
    assert with_tokenizer(again, random_model(vocab_size=300)).tokenizer == "bytes"


def test_a_model_without_its_tokenizer_is_not_trained_on_bytes(fine_tuned, tmp_path):
    config, model = fine_tuned
    (tmp_path / "start" / "tokenizer.json").unlink()
    (tmp_path / "start" / "tokenizer_config.json").unlink()
    mesh = make_run_mesh(config)
    with pytest.raises(ConfigError, match="has 256 tokens; the model's vocab_size is 11"):
        make_batches(config, model, mesh)
    with pytest.raises(ConfigError, match="vocab_size of 300 tokens is not that of bytes"):
        make_batches(config, random_model(vocab_size=300), mesh)
    (tmp_path / "start" / "spiece.model").write_text("{}")
    with pytest.raises(ConfigError, match=r"its spiece\.model"):
        make_batches(config, model, mesh)


def test_sequences_beyond_the_model_s_positions_are_refused(with_text, caplog):
    mesh = make_run_mesh(with_text)
    learned = random_model({"positions.kind": "learned"}, vocab_size=256, max_len=15)
    with pytest.raises(ConfigError, match="a sequence of 16 tokens is longer than max_len=15"):
        make_batches(with_text, learned, mesh)
    make_batches(with_text, random_model(vocab_size=256, max_len=15), mesh)
    assert "a sequence of 16 tokens is longer than max_len=15" in caplog.text


def test_a_run_of_an_earlier_version_keeps_its_windows(with_text):
    stored = to_dict(with_text)
    for field in ("packing", "bos"):
        del stored["data"][field]
    data = from_stored(stored, "config.yaml").data
    assert (data.packing, data.bos) == ("joined", None)
    stored["data"]["tokenizer"] = "tokenizer.json"
    assert from_stored(stored, "config.yaml").data.bos is False
    changes = find_changes(stored, with_text, 0)
    assert "data.packing: 'joined' in the checkpoint, 'separate' now" in changes


def test_a_model_without_a_head_cannot_be_trained():
    finetune = dataclasses.replace(RUN, model=None, init_from="embedder")
    with pytest.raises(UserError, match=r"head.kind='none'\), so it cannot train"):
        model_to_train(finetune, random_model(head=HeadConfig(kind="none")))
