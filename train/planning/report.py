"""The output of `jaxllm plan --topology`: one plan, or the layouts that a search found."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.errors import UserError
from jaxllm.train.config import TrainConfig
from jaxllm.train.cost import check_has_model
from jaxllm.train.mesh import fill_sizes

from .compiled.compiler import check_installed, compile_plan, is_installed
from .plan import Plan, make_plan
from .render import fits, render
from .search import Candidate, search
from .step_program import check_fits_topology, mesh_shape
from .topology import Topology

log = logging.getLogger("jaxllm")

MOST_SHOWN = 8  # layouts that a search lists


class Options(NamedTuple):
    """How a plan is made."""

    search: bool = False  # whether to try other layouts than that of the run
    analytic: bool = False  # whether to use the analytic model although a compiler is installed
    compile: int | None = None  # the number of layouts of a search that the compiler checks
    hlo: str | None = None  # file for the optimized HLO


class Report(NamedTuple):
    """A plan, or several, as text and as plain data."""

    text: str
    data: dict[str, Any]
    fits: bool


def report(config: TrainConfig, topology: Topology, options: Options) -> Report:
    """Plans a run on a topology, by the compiler if it is installed and not declined.

    Raises:
        UserError: options exclude each other, the config has no model, the compiler fails, or a
            search finds no mesh that holds the state.
        ConfigError: the mesh or the batch does not fit the devices.
    """
    _check_options(options, topology)
    check_has_model(config)
    sizes = fill_sizes(mesh_shape(config), topology.size)
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))
    if options.search:
        return _report_search(config, topology, options)
    check_fits_topology(config, topology)  # before minutes of compiling
    platform = topology.device.platform
    if options.analytic or not is_installed(platform):
        plan = make_plan(config, topology)
    else:
        plan = _compiled_plan(config, topology, options.hlo)
    return Report(render(plan), plan.to_json(), plan.spare >= 0)


def _check_options(options: Options, topology: Topology) -> None:
    """Raises UserError for an option that would have no effect."""
    if options.compile is not None and (options.analytic or not options.search):
        raise UserError("--compile checks the layouts of --search, and excludes --analytic")
    if options.hlo is not None:
        if options.analytic or options.search:
            raise UserError("--hlo needs the compiler's program; leave out --analytic and --search")
        check_installed(topology.device.platform)


def _compiled_plan(config: TrainConfig, topology: Topology, hlo: str | None = None) -> Plan:
    compiled = compile_plan(config, topology, None if hlo is None else Path(hlo))
    return make_plan(config, topology, compiled)


def _report_search(config: TrainConfig, topology: Topology, options: Options) -> Report:
    if options.compile:
        check_installed(topology.device.platform)
    best = search(config, topology)[:MOST_SHOWN]
    checked = [
        Candidate(one.config, _compiled_plan(one.config, topology))
        for one in best[: options.compile or 0]
    ]
    best = sorted(checked, key=lambda one: one.plan.step_seconds) + best[len(checked) :]
    if not best:
        return Report(f"no layout of {topology} fits", {"layouts": []}, fits=False)
    lines = [f"{topology}: layouts that fit, the fastest first"]
    lines += [_line(one) for one in best]
    data = [{"options": one.options, **one.plan.to_json()} for one in best]
    is_fitting = any(one.plan.spare >= 0 for one in best)
    return Report("\n".join(lines), {"layouts": data}, is_fitting)


def _line(one: Candidate) -> str:
    plan = one.plan
    by = "" if plan.source == "analytic model" else f", by the {plan.source}, {fits(plan)}"
    return (
        f"{plan.step_seconds:9.3g} s  MFU {plan.mfu(plan.step_seconds):.0%}  "
        f"{plan.peak / 2**30:6.1f} GiB  {plan.moved / 1e9:6.1f} GB  {one.options}{by}"
    )
