"""Device meshes: axis sizes, the number of devices, and error messages."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.train.mesh import MeshConfig, make_mesh, use_virtual_devices


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
