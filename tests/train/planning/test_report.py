"""The report of `jaxllm plan --topology`."""

import pytest
from planned_runs import TPU, run

from jaxllm.errors import UserError
from jaxllm.train.planning import report as module
from jaxllm.train.planning import search as search_module
from jaxllm.train.planning.compiled.compiler import Compiled
from jaxllm.train.planning.report import Options, report

COMPILED = Compiled(200 * 2**30, (), 5e9, (), 60.0)


def test_without_a_compiler_the_model_plans(monkeypatch):
    monkeypatch.setattr(module, "is_installed", lambda platform: False)
    found = report(run(fsdp=8), TPU, Options())
    assert found.fits
    assert "by the analytic model" in found.text
    assert found.data["source"] == "analytic model"


def test_an_axis_takes_the_devices_that_remain(monkeypatch):
    monkeypatch.setattr(module, "is_installed", lambda platform: False)
    found = report(run(fsdp=-1, tensor=2), TPU, Options())
    assert found.data == report(run(fsdp=4, tensor=2), TPU, Options()).data
    with pytest.raises(UserError, match="8 devices are not divisible by the 3 of the other axes"):
        report(run(fsdp=-1, tensor=3), TPU, Options())


def test_an_installed_compiler_plans_unless_declined(monkeypatch):
    monkeypatch.setattr(module, "is_installed", lambda platform: True)
    monkeypatch.setattr(module, "compile_plan", lambda config, topology, hlo=None: COMPILED)
    found = report(run(fsdp=8), TPU, Options())
    assert not found.fits
    assert "by the compiler (memory only): does not fit: 104.3 GiB more" in found.text
    assert "analytic" in report(run(fsdp=8), TPU, Options(analytic=True)).text


def test_a_bad_mesh_is_found_before_compiling(monkeypatch):
    monkeypatch.setattr(module, "is_installed", lambda platform: True)
    monkeypatch.setattr(module, "compile_plan", lambda *_: pytest.fail("compiled"))
    with pytest.raises(UserError, match="needs 4 devices"):
        report(run(fsdp=4), TPU, Options())


def test_a_search_lists_layouts_and_lets_the_compiler_check_the_best(monkeypatch):
    monkeypatch.setattr(search_module, "MOST_MESHES", 1)
    monkeypatch.setattr(search_module, "REMATS", ["full"])
    monkeypatch.setattr(module, "check_installed", lambda platform: None)
    monkeypatch.setattr(module, "compile_plan", lambda config, topology, hlo=None: COMPILED)
    found = report(run(), TPU, Options(search=True))
    assert found.text.splitlines()[0] == "v5p:2x2x2: layouts that fit, the fastest first"
    assert "--remat full" in found.data["layouts"][0]["options"]
    checked = report(run(), TPU, Options(search=True, compile=1))
    assert "by the compiler (memory only), does not fit" in checked.text
    assert not checked.fits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(compile=2), "--compile checks the layouts of --search"),
        (Options(compile=2, search=True, analytic=True), "excludes --analytic"),
        (Options(hlo="x", search=True), "--hlo needs the compiler's program"),
        (Options(hlo="x"), "compiler for tpu is not installed"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(options, message, monkeypatch):
    monkeypatch.setattr("jaxllm.train.planning.compiled.compiler.is_installed", lambda _: False)
    with pytest.raises(UserError, match=message):
        report(run(fsdp=8), TPU, options)
