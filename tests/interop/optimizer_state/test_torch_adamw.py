"""The state of PyTorch's AdamW is read in full; everything unsupported is reported at once."""

import copy
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hf_cases import randomize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_training import adamw, steps

from jaxllm.interop import CheckpointError, load_training_state
from jaxllm.interop.formats.sharded_tensor import Chunk, join
from jaxllm.interop.in_memory.state_dict import describe
from jaxllm.interop.optimizer_state.optimizer_file import OptimizerFile
from jaxllm.interop.optimizer_state.parameter_order import named_groups
from jaxllm.interop.optimizer_state.torch_adamw import read_adamw

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
RATE = 1e-3


def trained(optimizer: Callable[..., Any], folder: Path, **config: object) -> dict[str, Any]:
    """Saves a tiny model after two steps; returns the optimizer's state."""
    fields = transformers.LlamaConfig(**{**SIZES, **HEADS, **config})
    model = randomize(transformers.LlamaForCausalLM(fields))
    made = optimizer(model)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (2, 3, 12))
    batches = [{"tokens": batch, "mask": np.ones((3, 11))} for batch in tokens]
    list(steps(model, made, batches, [RATE, RATE]))
    model.save_pretrained(folder)
    return made.state_dict()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sound")
    state = trained(adamw, folder)
    torch.save(state, folder / "optimizer.pt")
    return folder, state


@pytest.fixture
def saving(sound, tmp_path) -> Callable[[Any], Path]:
    """A copy of the folder with the given optimizer state."""

    def save(state: Any, name: str = "optimizer.pt") -> Path:
        folder = Path(shutil.copytree(sound[0], tmp_path / "copy"))
        (folder / "optimizer.pt").unlink()
        torch.save(state, folder / name)
        return folder

    return save


def arrays(folder: Path, **options: object) -> dict[str, np.ndarray]:
    _, state = load_training_state(folder, **options)
    return {name: np.asarray(array) for name, array in {**state.mu, **state.nu}.items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_state_is_read_in_full(sound):
    folder, saved = sound
    _, state = load_training_state(folder)
    assert (state.step, state.b1, state.b2, state.eps) == (2, 0.9, 0.95, 1e-8)
    assert state.learning_rate == RATE
    assert state.weight_decay["embed.embedding"] == 0.1
    assert state.weight_decay["layers.0:2.attn_norm.scale"] == 0.0
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    for layer in range(2):
        number = names.index(f"model.layers.{layer}.mlp.up_proj.weight")
        for ours, theirs in ((state.mu, "exp_avg"), (state.nu, "exp_avg_sq")):
            theirs_DF = saved["state"][number][theirs].numpy().T
            np.testing.assert_array_equal(ours["layers.0:2.mlp.up_proj.kernel"][layer], theirs_DF)


def without_names(saved: dict[str, Any]) -> dict[str, Any]:
    state = copy.deepcopy(saved)
    for group in state["param_groups"]:
        del group["param_names"]
    return state


def test_numbered_parameters_are_named_in_the_model_order(sound, saving):
    """transformers gives the order, and shapes assign the parameters to two groups."""
    folder, saved = sound
    assert same(arrays(saving(without_names(saved))), arrays(folder))


def test_the_order_may_be_given(sound, saving, tmp_path):
    folder, saved = sound
    names = tmp_path / "names.txt"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    order = [name for name, _ in model.named_parameters()]
    names.write_text("\n".join(order))
    copied = saving(without_names(saved))
    assert same(arrays(copied, names=names), arrays(folder))
    names.write_text("\n".join([*order[:-1], "model.other"]))
    with pytest.raises(
        CheckpointError, match=r"name different parameters: lm_head\.weight, model\.o"
    ):
        load_training_state(copied, names=names)
    names.write_text("\n".join([*order, *order[:1]]))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight occurs more than once"):
        load_training_state(copied, names=names)


def test_wrapper_prefixes_are_removed_from_names(sound, saving):
    """Wrappers of data parallelism, a compiled layer and activation checkpointing."""
    folder, saved = sound
    state = copy.deepcopy(saved)
    for group in state["param_groups"]:
        group["param_names"] = [
            "module." + name.replace("layers.0.", "layers.0._orig_mod._checkpoint_wrapped_module.")
            for name in group["param_names"]
        ]
    assert same(arrays(saving(state)), arrays(folder))


def test_the_optimizer_file_can_be_elsewhere(sound, saving):
    folder, saved = sound
    elsewhere = saving(saved, "mine.bin")
    assert same(arrays(folder, optimizer=elsewhere / "mine.bin"), arrays(folder))
    with pytest.raises(CheckpointError, match=r"has none of optimizer\.pt, .* and \.metadata"):
        load_training_state(elsewhere)
    torch.save(saved, elsewhere / "optim.pt")
    torch.save(saved, elsewhere / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"has optimizer\.pt and optim\.pt: give"):
        load_training_state(elsewhere)


def test_options_that_older_pytorch_does_not_write_are_optional(sound, saving):
    folder, saved = sound
    state = copy.deepcopy(saved)
    for group in state["param_groups"]:
        del group["maximize"], group["decoupled_weight_decay"]
    for entry in state["state"].values():
        entry["step"] = int(entry["step"])
    assert same(arrays(saving(state)), arrays(folder))


FIRST = "model.embed_tokens.weight"


def state_of(saved: dict, name: str = FIRST) -> dict:
    group = saved["param_groups"][0]
    return saved["state"][group["params"][group["param_names"].index(name)]]


def set_in_all(saved: dict, **options: object) -> None:
    for group in saved["param_groups"]:
        group.update(options)


def drop(saved: dict, name: str = FIRST) -> None:
    """Removes a parameter's state, as if it had been frozen."""
    state_of(saved, name).clear()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop, f"no moments for {FIRST}"),
        (lambda s: state_of(s).pop("exp_avg_sq"), f"{FIRST}: it has no exp_avg_sq"),
        (
            lambda s: state_of(s).update(exp_avg=torch.zeros(16, 32)),
            f"{FIRST}: exp_avg has shape [16, 32], but the parameter has [32, 16]",
        ),
        (
            lambda s: state_of(s).update(exp_avg=torch.zeros(32, 16).bfloat16()),
            f"{FIRST}: exp_avg is bfloat16, but resuming a run needs float32",
        ),
        (
            lambda s: state_of(s).update(max_exp_avg_sq=torch.zeros(32, 16)),
            "it has max_exp_avg_sq of amsgrad, which optax's AdamW does not support",
        ),
        (
            lambda s: state_of(s).update(momentum_buffer=None),
            "it has momentum_buffer, which is not part of AdamW",
        ),
        (lambda s: state_of(s).update(step=torch.tensor(7.0)), f"{FIRST} 7"),
        (lambda s: state_of(s).pop("step"), "some parameters have no step count"),
        (
            lambda s: [entry.update(step=torch.tensor(2.5)) for entry in s["state"].values()],
            "step=2.5 is not a whole number",
        ),
        (lambda s: set_in_all(s, amsgrad=True), "group 1: amsgrad=True is not supported, only Fal"),
        (lambda s: set_in_all(s, maximize=True), "group 0: maximize=True is not supported"),
        (
            lambda s: set_in_all(s, decoupled_weight_decay=False),
            "decoupled_weight_decay=False is not supported, only True",
        ),
        (lambda s: set_in_all(s, lr_scale=2.0), "group 0: lr_scale=2.0 is not an option of AdamW"),
        (lambda s: set_in_all(s, lr="fast"), "group 0: lr='fast' is not a number"),
        (
            lambda s: set_in_all(s, betas=(0.9, 1.0)),
            "betas=(0.9, 1.0) is not two numbers in [0, 1)",
        ),
        (lambda s: s["param_groups"][1].pop("eps"), "group 1: eps is missing, which AdamW writes"),
        (lambda s: s["param_groups"][1].update(lr=2e-3), "lr differs between groups (0.001 and"),
        (
            lambda s: s["param_groups"][0].update(betas=(0.8, 0.95)),
            "betas differs between groups ((0.8, 0.95) and (0.9, 0.95))",
        ),
        (
            lambda s: s["param_groups"][1].update(weight_decay=0.2),
            "weight_decay differs between groups that decay (0.1 and 0.2)",
        ),
        (
            lambda s: s["param_groups"][0]["param_names"].__setitem__(0, "lm_head.bias"),
            "moments for lm_head.bias, which is not a parameter of the model",
        ),
        (
            lambda s: s["param_groups"][1]["param_names"].__setitem__(0, FIRST),
            f"{FIRST} is listed twice in the param_groups",
        ),
        (lambda s: s["state"].update({99: {}}), "parameter 99 has state but is in no group"),
        (lambda s: s["param_groups"].clear(), "parameter 0 has state but is in no group"),
        (
            lambda s: s.pop("state"),
            "not an optimizer's state_dict() with 'state' and 'param_groups'",
        ),
        (
            lambda s: s["param_groups"][0].update(params="all"),
            "not an optimizer's state_dict() with 'state'",
        ),
        (
            lambda s: s["param_groups"][0]["param_names"].pop(),
            "a group's param_names do not match its params",
        ),
    ],
)
def test_states_that_cannot_be_resumed_are_refused(damage, said, sound, saving):
    state = copy.deepcopy(sound[1])
    damage(state)
    folder = saving(state)
    with pytest.raises(CheckpointError) as error:
        load_training_state(folder)
    assert said in str(error.value)
    assert str(folder / "optimizer.pt") in str(error.value)


def test_all_problems_are_reported_at_once(sound, saving):
    state = copy.deepcopy(sound[1])
    drop(state)
    state_of(state, "lm_head.weight").update(exp_avg=torch.zeros(3), step=torch.tensor(9.0))
    set_in_all(state, amsgrad=True)
    with pytest.raises(CheckpointError) as error:
        load_training_state(saving(state))
    for said in (
        "no moments for",
        "exp_avg has shape [3]",
        "different numbers of steps",
        "amsgrad=True",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            lambda m: torch.optim.SGD(m.parameters(), RATE, momentum=0.9),
            "momentum_buffer, which is not part",
        ),
        (
            lambda m: torch.optim.RMSprop(m.parameters(), RATE),
            "square_avg, which is not part of AdamW",
        ),
        (
            lambda m: torch.optim.NAdam(m.parameters(), RATE),
            "mu_product, which is not part of AdamW",
        ),
        (
            lambda m: torch.optim.RAdam(m.parameters(), RATE, decoupled_weight_decay=True),
            "amsgrad is missing, which AdamW writes",
        ),
        (lambda m: torch.optim.Adam(m.parameters(), RATE), "decoupled_weight_decay=False is not"),
    ],
)
def test_other_optimizers_are_refused(optimizer, said, tmp_path):
    state = trained(optimizer, tmp_path)
    for group in state["param_groups"]:  # so that it is not refused for missing names
        group["param_names"] = [
            name
            for name, _ in transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path
            ).named_parameters()
        ]
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError) as error:
        load_training_state(tmp_path)
    assert said in str(error.value)


def test_tied_weights_have_moments_once(tmp_path):
    state = trained(adamw, tmp_path, tie_word_embeddings=True)
    torch.save(state, tmp_path / "optimizer.pt")
    _, read = load_training_state(tmp_path)
    assert not any("head" in name for name in read.mu)
    group = state["param_groups"][0]
    group["params"].append(99)
    group["param_names"].append("lm_head.weight")
    state["state"][99] = {name: x.clone() for name, x in state_of(state).items()}
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has moments of its own, but is"):
        load_training_state(tmp_path)


def test_a_schedule_with_another_step_count_is_refused(sound, saving):
    folder = saving(sound[1])
    torch.save({"last_epoch": 2, "base_lrs": [1.0]}, folder / "scheduler.pt")
    assert load_training_state(folder)[1].step == 2
    torch.save({"last_epoch": 3, "base_lrs": [1.0]}, folder / "scheduler.pt")
    with pytest.raises(CheckpointError, match="schedule has taken 3 steps, but AdamW 2"):
        load_training_state(folder)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_pickle_is_an_error(sound, data):
    """Damage is an error, or it is in bytes that do not matter and the state is read."""
    file = sound[0] / "optimizer.pt"
    whole = file.read_bytes()
    begin = whole.index(b"data.pkl")
    at = data.draw(st.integers(begin, whole.index(b"PK", begin)))
    some = data.draw(st.binary(min_size=1, max_size=9))
    file.write_bytes(whole[:at] + some + whole[at + len(some) :])
    try:
        said = said_against(sound[0])
    finally:
        file.write_bytes(whole)
    assert said is None or "optimizer.pt" in said


def said_against(folder: Path) -> str | None:
    try:
        load_training_state(folder)
    except CheckpointError as error:
        return str(error)
    return None


def within_itself() -> dict:
    state: dict[str, Any] = {"param_groups": []}
    state["state"] = state
    return state


def doubled() -> dict:
    """A list that holds the same list twice, nested sixty levels deep."""
    value: list = []
    for _ in range(60):
        value = [value, value]
    return {"state": {0: {"step": value}}, "param_groups": []}


PICKLES = {
    "code": b"cposix\nsystem\n(Vtouch mark\ntR.",
    "within itself": pickle.dumps(within_itself(), 2),
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "doubled": pickle.dumps(doubled(), 2),
}


@pytest.mark.parametrize("how", PICKLES)
def test_a_hostile_pickle_is_an_error(how, sound, saving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = saving(sound[1])
    with zipfile.ZipFile(folder / "optimizer.pt", "w") as archive:
        archive.writestr("archive/data.pkl", PICKLES[how])
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        load_training_state(folder)
    assert not (tmp_path / "mark").exists()


def test_parameters_are_assigned_to_groups_if_there_is_only_one_way():
    a, b = (3, 4), (4,)
    names = {"q": a, "norm": b, "k": a, "final": b}
    assert named_groups([[a, a], [b, b]], names) == [["q", "k"], ["norm", "final"]]
    assert named_groups([[a, b, a, b]], names) == [["q", "norm", "k", "final"]]
    dealt = named_groups([[a, b, b], [a]], {"q": a, "n": b, "m": b, "k": a})
    assert dealt == [["q", "n", "m"], ["k"]]
    for groups in ([[a, b], [a, b]], [[b, b]], [[a], [a], [b, b]], []):
        with pytest.raises(CheckpointError, match="fit the groups by shape in "):
            named_groups(groups, names)
    many = {str(number): a for number in range(40)}
    with pytest.raises(CheckpointError, match="fit the groups by shape in "):
        named_groups([[a] for _ in range(40)], many)


def test_moments_in_shards_belong_to_numbered_parameters_too():
    """As in the state dict of an optimizer whose parameters PyTorch shards over processes."""
    path = Path("optimizer")
    rows = describe({"a": np.ones((1, 3), np.float32), "b": np.ones((2, 3), np.float32)}, path)
    moment = join("w", (3, 3), path, [Chunk((0, 0), rows["a"]), Chunk((1, 0), rows["b"])])
    entry = {"step": 2.0, "exp_avg": moment, "exp_avg_sq": moment}
    options = {"lr": RATE, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    group = {"params": [0], "amsgrad": False, **options}
    stored = OptimizerFile(path, {0: entry}, [group], None)
    found = read_adamw(stored, {"w": (3, 3)}, {}, ["w"])
    assert found.exp_avg["w"] is moment
