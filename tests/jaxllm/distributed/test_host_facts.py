"""Facts about this process: memory within a container, and the folder of a run."""

import jax

from jaxllm.distributed.host_facts import collect_facts, host_memory, probe_name, sees_folder


def test_memory_is_that_of_the_host_or_of_the_container(tmp_path):
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB\n")
    assert host_memory(meminfo, limit) == (1_024_000, 614_400)
    limit.write_text("max\n")
    assert host_memory(meminfo, limit) == (1_024_000, 614_400)
    limit.write_text("700000\n")
    assert host_memory(meminfo, limit) == (700_000, 614_400)
    assert host_memory(tmp_path / "none", limit) == (None, None)


def test_facts_are_those_of_this_process():
    facts = collect_facts(rows=(1, 2))
    assert (facts.process, facts.num_devices, facts.platform) == (0, len(jax.devices()), "cpu")
    assert facts.versions["jax"] == jax.__version__
    assert facts.rows == (1, 2)


def test_a_folder_is_seen_by_the_file_in_it(tmp_path):
    assert not sees_folder(tmp_path, "abc")
    (tmp_path / probe_name("abc")).write_text("other")
    assert not sees_folder(tmp_path, "abc")
    (tmp_path / probe_name("abc")).write_text("abc")
    assert sees_folder(tmp_path, "abc")
