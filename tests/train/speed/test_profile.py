"""Profiles: the trace of chosen steps is in the formats that xprof and Perfetto open."""

import gzip
import json

import jax
import jax.numpy as jnp

from jaxllm.train.speed.profile import Profile


def test_a_trace_has_the_chosen_steps_and_is_closed_early(tmp_path):
    step = jax.jit(lambda x: x @ x)
    x = jnp.ones((8, 8))
    with Profile(range(2, 4), tmp_path) as profile:
        for number in range(1, 6):
            with profile.step(number):
                x = step(x)
            profile.finish(number, x)
    [folder] = (tmp_path / "plugins" / "profile").iterdir()
    [trace] = folder.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}
    assert steps == {2, 3}
    [planes] = folder.glob("*.xplane.pb")
    profile_data = jax.profiler.ProfileData.from_file(str(planes))
    names = [event.name for plane in profile_data.planes for line in plane.lines
             for event in line.events]  # fmt: skip
    assert "train" in names


def test_an_interrupted_run_leaves_a_whole_trace_and_none_without_steps(tmp_path):
    with Profile(range(1, 9), tmp_path / "cut") as profile, profile.step(1):
        pass
    assert list((tmp_path / "cut").rglob("*.xplane.pb"))
    with Profile(range(0), tmp_path / "none") as profile, profile.step(1):
        pass
    assert not (tmp_path / "none").exists()
