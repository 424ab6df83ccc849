"""Writes a folder of a PEFT adapter, which `peft` loads onto the model of transformers."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.checkpoint_origin import ADAPTER
from jaxllm.config import EncoderDecoderConfig, has_head
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.lazy_tensor import from_array, transfer_tensor
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.interop.saving.save import write_checkpoint, write_tensor_files
from jaxllm.lora.attach import FACTORS
from jaxllm.models import Model
from jaxllm.storage.paths import check_output

from .adapter import Adapter
from .peft_config import NESTED, PREFIX, WEIGHTS, A, B, PeftConfig
from .places import Place, find_places, group_places, module_names, module_rules

Matrix = np.ndarray


def write_adapter(
    adapter: Adapter,
    model: Model,
    path: str | Path,
    copies: Sequence[Callable[[Path], None]] = (),
) -> None:
    """Writes an adapter as a folder that `peft` loads.

    Args:
        adapter: the adapter.
        model: its base; may be without weights.
        path: a folder that does not exist yet, or is empty.
        copies: copy other files, such as the tokenizer, into a folder.

    Raises:
        CheckpointError: the folder is not empty, or no family of transformers has this model.
    """
    path = check_output(path).resolve()
    table, rules = module_rules(model)
    places = group_places(find_places(model, rules, list(adapter.scales)))
    tensors: dict[str, Matrix] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for own in places.values():
        module, scale = own[0].module, adapter.scales[own[0].projection]
        a, b = _assemble(own, adapter)
        ranks[module], scales[module] = a.shape[0] // own[0].num_experts, scale
        key = _written_key(own[0], places)
        tensors |= {f"{PREFIX}{key}{A}": a, f"{PREFIX}{key}{B}": b}
    saved = dict(_full_tensors(rules, adapter))
    tied = {copy: saved[one] for copy, one in table.tied.items() if one in saved}
    tensors |= {f"{PREFIX}{name}": x for name, x in {**saved, **tied}.items()}
    experts = sorted({own[0].module for own in places.values() if own[0].num_experts > 1})
    config = _config(adapter, model, ranks, scales, module_names(rules), experts, list(saved))
    is_flipped = any(own[0].input_dim == 0 for own in places.values() if own[0].num_experts == 1)
    config = dataclasses.replace(config, fan_in_fan_out=is_flipped)
    sources = {name: from_array(np.ascontiguousarray(x)) for name, x in sorted(tensors.items())}
    file = safetensors_file.lay_out(WEIGHTS, sources)
    text = (json.dumps(config.to_json(), indent=2) + "\n").encode()
    write = partial(write_tensor_files, [file], sources, False)
    write_checkpoint(path, write, {ADAPTER: text}, copies, together=False)


def _assemble(places: Sequence[Place], adapter: Adapter) -> tuple[Matrix, Matrix]:
    """Returns both factors of a stored tensor from those of the projections in it.

    Projections with the same `a`, as PEFT has for a fused tensor, share it. Otherwise the ranks add
    up: each has its own rows of `a`, and zeros for the others' outputs in `b`.
    """
    experts = places[0].num_experts
    inputs, outputs = places[0].shape
    rows: list[list[Matrix]] = [[] for _ in range(experts)]
    columns: list[list[Matrix]] = [[] for _ in range(experts)]
    for place in places:
        own = (adapter.arrays[f"{place.projection}{end}"][place.position] for end in FACTORS)
        a, b = next(own), next(own)
        rank = a.shape[-1]
        row = np.empty((rank, inputs), np.float32)
        row[:, place.inputs] = a.reshape(-1, rank).T
        column = np.zeros((outputs, rank), np.float32)
        column[place.outputs] = b.reshape(rank, -1).T
        rows[place.expert].append(row)
        columns[place.expert].append(column)
    if all(np.array_equal(own[0], row) for own in rows for row in own):
        a = np.stack([own[0] for own in rows])
        b = np.stack([np.sum(own, axis=0) for own in columns])
    else:
        a = np.stack([np.concatenate(own) for own in rows])
        b = np.stack([np.concatenate(own, axis=1) for own in columns])
    return a.reshape(-1, inputs), b.transpose(1, 2, 0).reshape(outputs, -1)


def _written_key(place: Place, places: Mapping[str, Sequence[Place]]) -> str:
    """Returns the name of a tensor's factors. PEFT nests the adapted parameters of one module."""
    if place.num_experts == 1:
        return place.module
    module, _, _ = place.module.rpartition(".")
    own = {one[0].module for one in places.values() if one[0].num_experts > 1}
    last = min(name for name in own if name.rpartition(".")[0] == module)
    return module if place.module == last else f"{module}{NESTED}"


def _full_tensors(rules: Sequence[BoundRule], adapter: Adapter) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the stored tensors of the parameters that were trained in full."""
    arrays = {name: from_array(np.asarray(x)) for name, x in adapter.full.items()}
    for rule, sizes in rules:
        if any(name in arrays for name, _ in rule.model.names(sizes)):
            transfer = rule.exporting(sizes)
            for name, index in transfer.target.names(sizes):
                source = transfer_tensor(transfer, index, arrays)
                yield name, source.read(source.whole)


def _config(
    adapter: Adapter,
    model: Model,
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    modules: Sequence[str],
    experts: Sequence[str],
    saved: Sequence[str],
) -> PeftConfig:
    """Returns the config of an adapter with these ranks and scales by module."""
    alphas = {
        name: scales[name] * (math.sqrt(rank) if adapter.rslora else rank)
        for name, rank in ranks.items()
    }
    alphas = {name: float(f"{alpha:.12g}") for name, alpha in alphas.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    plain = [name for name in ranks if name not in experts]
    is_tied = has_head(model.config) and "embed.embedding" in adapter.full
    kind = "SEQ_2_SEQ_LM" if isinstance(model.config, EncoderDecoderConfig) else "CAUSAL_LM"
    return PeftConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        target_modules=short_names(plain, modules),
        target_parameters=short_names(experts, modules) or None,
        modules_to_save=short_names([n.removesuffix(".weight") for n in saved], modules) or None,
        ensure_weight_tying=is_tied and "lm_head.kernel" not in adapter.full,
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
        alpha_pattern={name: own for name, own in alphas.items() if own != alpha},
        base_model_name_or_path=adapter.base or None,
        task_type=kind if has_head(model.config) else None,
    )


def _commonest(numbers: Mapping[str, Any]) -> Any:
    return next((number for number, _ in Counter(numbers.values()).most_common(1)), 1)


def short_names(names: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Returns the ends of names, such as `q_proj`, that name them and no other module; else all."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
        fitting = (
            end
            for end in ends
            if {one for one in modules if one == end or one.endswith(f".{end}")} <= set(names)
        )
        found[next(fitting, name)] = None
    return sorted(found)
