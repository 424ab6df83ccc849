"""Topologies: parsed, checked, and how fast groups of their devices exchange data."""

import math

import pytest

from jaxllm.errors import UserError
from jaxllm.train.planning.topology import parse_topology

MESH = {"data": 1, "fsdp": 16, "tensor": 4, "expert": 1}


@pytest.mark.parametrize(("text", "size"), [("v5p:4x4x4", 64), ("v6e:8x8", 64), ("h100:8", 8)])
def test_a_topology_is_parsed_and_printed(text, size):
    assert parse_topology(text).size == size
    assert str(parse_topology(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "is not DEVICE:SHAPE, as in v5p:4x4x4"),
        ("v5p:0x2x2", "is not DEVICE:SHAPE"),
        ("v7:2x2", "'v7' is not a device"),
        ("v5p:4x4", "a shape of v5p is the 3 sizes of its torus"),
        ("h100:8x8", "a shape of h100 is the number of devices"),
        ("h100:12", "12 is not a multiple of the 8 devices of a host"),
    ],
)
def test_wrong_topologies_are_explained_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_topology(text)
    assert "\n" not in str(error.value)


def test_axes_of_a_torus_share_its_links():
    topology = parse_topology("v5p:4x4x4")
    both = topology.bandwidth(("fsdp", "tensor"), MESH)
    assert both == pytest.approx(topology.device.link)
    assert topology.bandwidth(("tensor",), MESH) == pytest.approx(
        both / 3
    )  # one dimension of three
    assert topology.bandwidth(("data",), MESH) == math.inf


def test_gpus_exchange_by_nvlink_on_a_host_and_by_network_between_hosts():
    topology = parse_topology("h100:64")
    device = topology.device
    assert topology.bandwidth(("tensor",), MESH) == device.link
    # Two groups of fsdp share a host: each has two of its adapters.
    assert topology.bandwidth(("fsdp",), MESH) == 2 * device.network
    assert topology.bandwidth(("fsdp", "tensor"), MESH) == 8 * device.network
