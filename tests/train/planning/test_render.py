"""Plans as text."""

from planned_runs import TPU, run

from jaxllm.train.planning.plan import make_plan
from jaxllm.train.planning.render import fits, render


def test_every_figure_has_a_line():
    text = render(make_plan(run(fsdp=4, tensor=2), TPU))
    assert text.startswith("v5p:2x2x2, fsdp 4 x tensor 2, by the analytic model: fits: ")
    for name in (
        "memory, GiB",
        "received",
        "  fsdp ",
        "  tensor ",
        "compute per step",
        "step ",
        "MFU",
    ):
        assert f"\n{name}" in text
    assert "x of the minimum" in text
    assert "compute-optimal" in text


def test_what_does_not_fit_says_by_how_much():
    plan = make_plan(run(fsdp=8), TPU)
    too_large = plan._replace(peak=TPU.device.memory + 3 * 2**30)
    assert fits(too_large) == "does not fit: 3.0 GiB more than the 95.7 GiB of each device"
