"""The optimizer's state is found in a folder and read as PyTorch wrote it."""

import pytest
import torch

from jaxllm.interop import CheckpointError
from jaxllm.interop.optimizer_state import optimizer_file


def saved(folder, name="optimizer.pt"):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.25)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / name)
    return optimizer.state_dict()


def test_moments_and_options_are_read(tmp_path):
    state = saved(tmp_path)
    found = optimizer_file.read(optimizer_file.find(tmp_path))
    assert set(found.state) == {0, 1}
    moment = found.state[0]["exp_avg"]
    assert (moment.read() == state["state"][0]["exp_avg"].numpy()).all()
    assert found.groups[0]["lr"] == 0.25
    assert found.schedule is None
    assert not found.is_named


def test_the_steps_of_a_schedule_beside_it_are_read(tmp_path):
    saved(tmp_path)
    torch.save({"last_epoch": 7}, tmp_path / optimizer_file.SCHEDULER)
    assert optimizer_file.read(tmp_path / "optimizer.pt").schedule == 7


def test_none_or_several_optimizer_files_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"has none of optimizer\.pt"):
        optimizer_file.find(tmp_path)
    for name in ("optimizer.pt", "optim.pt"):
        saved(tmp_path, name)
    with pytest.raises(CheckpointError, match=r"has optimizer\.pt and optim\.pt"):
        optimizer_file.find(tmp_path)


def test_files_that_are_not_optimizer_states_are_refused(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="is a dict with 'weights', not an optimizer's"):
        optimizer_file.read(tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="neither a file nor a DCP folder"):
        optimizer_file.read(tmp_path / "nothing")
