"""Device meshes: axis sizes, the number of devices, and error messages."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.train.mesh import MeshConfig, SlicesConfig, make_mesh, use_virtual_devices


def test_unnamed_axes_have_size_1():
    assert dict(make_mesh(fsdp=4, tensor=2).shape) == {
        "data": 1,
        "fsdp": 4,
        "sequence": 1,
        "tensor": 2,
        "expert": 1,
    }


def test_a_small_mesh_uses_the_first_of_the_given_devices():
    assert make_mesh(devices=jax.devices()).size == 1
    found = make_mesh(devices=jax.devices()[4:], fsdp=2)
    assert dict(found.shape) == {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 1, "expert": 1}
    assert [device.id for device in found.devices.flat] == [4, 5]
    with pytest.raises(UserError, match=r"fsdp=4 needs 4 devices, but there are 2$"):
        make_mesh(devices=jax.devices()[:2], fsdp=4)
    with pytest.raises(UserError, match=r"fsdp=1 needs 1 devices, but there are 0$"):
        make_mesh(devices=[], fsdp=1)


def test_devices_may_be_an_array():
    found = make_mesh(devices=np.array(jax.devices()).reshape(2, 4), fsdp=4, tensor=2)
    assert [device.id for device in found.devices.flat] == [*range(8)]


def test_one_axis_may_take_the_devices_that_remain():
    assert dict(make_mesh(fsdp=-1, tensor=2).shape)["fsdp"] == 4
    assert MeshConfig(fsdp=-1).fsdp == -1
    with pytest.raises(UserError, match="8 devices are not divisible by the 3 of the other axes"):
        make_mesh(data=3, fsdp=-1)
    with pytest.raises(UserError, match="data and fsdp are -1; only one axis may be"):
        make_mesh(data=-1, fsdp=-1)
    with pytest.raises(ValueError, match="more than one axis of mesh is -1"):
        MeshConfig(data=-1, fsdp=-1)


class Chip:
    """A device of a slice, as far as a mesh asks."""

    platform = device_kind = "cpu"

    def __init__(self, id_: int):
        self.id, self.process_index, self.slice_index = id_, id_, id_ % 2


def test_the_axes_in_dcn_lie_between_slices():
    chips = [Chip(i) for i in range(8)]
    found = make_mesh(devices=chips, data=2, fsdp=4, dcn={"data": 2}).devices
    by_data = found.reshape(2, 4)
    assert [{chip.slice_index for chip in row} for row in by_data] == [{0}, {1}]
    found = make_mesh(devices=chips, fsdp=4, tensor=2, dcn={"fsdp": 2}).devices.reshape(4, 2)
    assert [{chip.slice_index for chip in row} for row in found] == [{0}, {0}, {1}, {1}]


def test_a_dcn_that_fits_no_slices_is_reported():
    with pytest.raises(UserError, match=r"data=3 is not divisible by dcn.data=2 slices"):
        make_mesh(devices=jax.devices(), data=3, dcn={"data": 2})
    with pytest.raises(
        UserError, match="needs 2 slices of 4 devices, but there are 8 devices in 1"
    ):
        make_mesh(data=2, fsdp=4, dcn={"data": 2})
    with pytest.raises(ValueError, match=r"mesh\.dcn\.fsdp=0 is less than 1"):
        SlicesConfig(fsdp=0)


@pytest.mark.parametrize("devices", [None, jax.devices()])
@pytest.mark.parametrize("size", [0, -2])
def test_a_size_below_1_is_reported(size, devices):
    with pytest.raises(UserError, match=f"fsdp={size} is less than 1"):
        make_mesh(devices=devices, fsdp=size)


def test_a_wrong_number_of_devices_is_reported():
    with pytest.raises(UserError, match=r"fsdp=3 needs 3 devices, but there are 8") as error:
        make_mesh(fsdp=3)
    assert "JAX_NUM_CPU_DEVICES=3" in str(error.value)
    with pytest.raises(UserError, match="one device needs 1 devices, but there are 8"):
        make_mesh()


def test_an_unknown_axis_is_reported_with_the_known_ones():
    with pytest.raises(UserError, match="unknown mesh axis pipeline; the axes are data, fsdp"):
        make_mesh(pipeline=8)


@pytest.mark.parametrize("size", [0, -2])
def test_an_axis_has_at_least_one_device(size):
    with pytest.raises(ValueError, match=f"mesh.tensor={size} is less than 1"):
        MeshConfig(tensor=size)


def test_virtual_devices_are_refused_once_jax_uses_others(monkeypatch):
    """Whatever JAX says of it: it accepts the number that it has, even if it uses a GPU."""
    monkeypatch.delenv("NPROC")
    settings = jax.config.jax_platforms, jax.config.jax_num_cpu_devices
    with pytest.raises(UserError, match=r"too late: JAX already uses 8 cpu devices\.") as error:
        use_virtual_devices(4)
    assert "set JAX_NUM_CPU_DEVICES=4 and NPROC=32 before Python starts" in str(error.value)
    assert "NPROC" not in os.environ
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(platform="gpu")])
    with pytest.raises(UserError, match=r"too late: JAX already uses 1 gpu devices\."):
        use_virtual_devices(8)
    assert settings == (jax.config.jax_platforms, jax.config.jax_num_cpu_devices)


def test_virtual_devices_may_be_asked_for_again(monkeypatch):
    monkeypatch.delenv("NPROC")
    use_virtual_devices(8)
    assert os.environ.pop("NPROC") == "64"
