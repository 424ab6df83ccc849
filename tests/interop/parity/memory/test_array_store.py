"""The array store on disk, and comparisons of models larger than memory."""

import dataclasses
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from encoder_decoder_cases import CASES as ENCODER_DECODERS
from hf_cases import CASES, randomize
from source_cases import write
from tiers import examples
from tiny import WIDE
from torch import nn

from benchmarks.large_llama import save_large_llama
from jaxllm.cli import main
from jaxllm.interop.loading.lazy_model import open_pretrained
from jaxllm.interop.parity import check_checkpoint, compare
from jaxllm.interop.parity.memory.array_store import SEGMENT, on_disk, parameters_on

FORWARD = ("weights", "config", "logits", "layers")


@pytest.fixture
def scratch(tmp_path):
    """A folder that must be empty again after the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


def test_stored_arrays_equal_the_given_ones(scratch):
    store, rng = on_disk(scratch), np.random.default_rng(0)
    given = [
        rng.standard_normal((3, 5), np.float32).T,
        np.array(7),
        np.empty((0, 3), np.float32),
        rng.integers(0, 9, 2**20),
        rng.standard_normal(17),
    ]
    kept = [store(array) for array in given]
    for array, other in zip(given, kept, strict=True):
        assert other.dtype == array.dtype
        np.testing.assert_array_equal(other, array, strict=True)
        assert not np.shares_memory(other, array)
        assert other.ctypes.data % 64 == 0


def test_arrays_larger_than_a_file_are_stored(scratch):
    given = np.arange(2**16)
    store = on_disk(scratch, segment=2**16)
    kept = [store(given + i) for i in range(3)]
    for i, array in enumerate(kept):
        np.testing.assert_array_equal(array, given + i)


def test_a_full_disk_raises_instead_of_killing_the_process(scratch):
    store = on_disk(scratch)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store(np.zeros(8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_parameters_are_stored_and_stay_tied(scratch):
    kept = []
    store = on_disk(scratch)

    def remember(array):
        kept.append(store(array))
        return kept[-1]

    with parameters_on(remember):
        linear = nn.Linear(3, 5)
        tied = nn.Linear(3, 5, bias=False)
        tied.weight = linear.weight
    with torch.no_grad():
        linear.weight.fill_(2.5)
    assert tied.weight is linear.weight
    assert any(np.shares_memory(tied.weight.detach().numpy(), array) for array in kept)
    np.testing.assert_array_equal(tied(torch.ones(3)).detach(), [7.5] * 5)
    before = len(kept)
    nn.Linear(3, 5)
    assert len(kept) == before


SAVED = {
    **{name: CASES[name].build for name in ("gpt2", "qwen3_moe")},
    "t5": ENCODER_DECODERS["t5"].build,
}


@pytest.fixture(params=examples([*SAVED, "llm"], "gpt2"))
def checkpoint(request, tmp_path):
    """Checkpoints with fused experts, tied and fused weights, an encoder, of a source system."""
    folder = tmp_path / request.param
    if request.param in SAVED:
        randomize(SAVED[request.param]()).save_pretrained(folder)
    else:
        folder.mkdir()
        write(request.param, folder)
    return folder


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
def test_the_report_is_the_same_as_in_memory(checkpoint, scratch):
    report = check_checkpoint(checkpoint, scratch=scratch, num_tokens=320, batch_size=1)
    wanted = check_checkpoint(checkpoint, levels=FORWARD, num_tokens=320, batch_size=1)
    assert report.ok
    assert tuple(report.verdicts) == FORWARD
    wanted = dataclasses.replace(wanted, date=report.date, not_compared=report.not_compared)
    assert report.to_json() == wanted.to_json()


@pytest.mark.exhaustive
def test_a_divergence_is_named_and_explained(tmp_path, scratch, make_llama, tokens):
    make_llama(rms_norm_eps=1e-3).save_pretrained(tmp_path / "other")
    other = open_pretrained(tmp_path / "other")
    report = compare(
        make_llama(), other, tokens, levels=("logits", "layers"), store=on_disk(scratch)
    )
    assert report.first_divergence.path == "layers.0.attn_norm"
    assert "eps" in report.first_divergence.hint


@pytest.mark.exhaustive
def test_training_levels_and_missing_folders_are_rejected(tmp_path, scratch, make_llama, capsys):
    make_llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"'gradients'.* one of weights, config, logits, layers$"):
        check_checkpoint(tmp_path / "llama", scratch=scratch, levels=("gradients",))
    command = ["parity", str(tmp_path / "llama"), "--output", str(tmp_path)]
    assert main([*command, "--scratch", str(tmp_path / "nowhere")]) == 2
    assert "nowhere' is not a folder" in capsys.readouterr().err
    assert main([*command, "--scratch", str(scratch), "--num-tokens", "320"]) == 0


# Prints the peak of anonymous memory, which the system cannot page out to a file.
MEMORY = """
import sys, threading, time
from jaxllm.interop.parity import check_checkpoint

peak = 0

def watch():
    global peak
    while True:
        status = open("/proc/self/status").read()
        peak = max(peak, int(status.partition("RssAnon:")[2].split()[0]) * 1024)
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
for path in sys.argv[2:]:
    report = check_checkpoint(path, scratch=sys.argv[1], num_tokens=320, batch_size=1)
    assert report.ok, report.first_divergence
    print(peak)
"""


@pytest.mark.campaign
def test_a_deep_model_takes_no_more_memory_than_a_shallow_one(tmp_path, scratch):
    folders = [tmp_path / "shallow", tmp_path / "deep"]
    for folder, depth in zip(folders, (1, 4), strict=True):
        save_large_llama(dataclasses.replace(WIDE, num_layers=depth), folder, 10**9)
    # The first run also compiles, and keeps what it compiled.
    command = [sys.executable, "-c", MEMORY, scratch, folders[0], *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, shallow, deep = map(int, done.stdout.split())
    in_float32 = 2 * sum(file.stat().st_size for file in folders[1].iterdir())
    assert deep - shallow < in_float32 / 8, (shallow, deep, in_float32)
