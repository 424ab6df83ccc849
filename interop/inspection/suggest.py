"""Suggests rules for tensors that have none, from their names and shapes: a start, not a proof."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import Config, DecoderConfig
from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.interop.families import Layout, RuleTable
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.tensor_files import read_only_file
from jaxllm.interop.loading.checkpoint import open_checkpoint
from jaxllm.interop.loading.plan import analyze_checkpoint
from jaxllm.interop.loading.user_family import resolve_family
from jaxllm.interop.rules.axis_ranges import Dims
from jaxllm.interop.rules.pattern import Side

from .decoder_matching import Matcher, Targets
from .layout_search import Shape, Stored, choose_layout, is_flipped, make_rules
from .suggest_tree import shapes_of, suggest_tree
from .suggestions import Suggested, Suggestions

CLOSE = 0.8  # a swap with more than this fraction of the similarity is a real alternative
WEAK = 0.15  # similarity of names below which only the shape supports a match

Match = tuple[Stored, Targets]
Layouts = Mapping[Stored, list[list[Dims]]]  # the possible layouts of each tensor


def suggest(
    tensors: Any,
    config: Config | None = None,
    *,
    rules: Any = None,
    tree: Any = None,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> Suggestions:
    """Suggests rules for the tensors that have none, by comparing names and shapes.

    Shapes decide which matches are possible, given the sizes in the config. Among those, names
    decide, by their similarity to the names that the known families use. Doubts are listed with
    each rule: a square matrix may be stored transposed, and tensors of equal shape are told apart
    by their names only.

    Args:
        tensors: a file, a folder, or shapes by name, such as a state dict; or a PyTorch module.
        config: the config of the model; by default as read from the folder by `rules` or by a known
            family.
        rules: existing rules of your own; their tensors and arrays are left alone.
        tree: any JAX pytree to suggest rules for, in place of a jaxllm model; its leaves may be
            shapes. Letters then tell sizes apart and mean nothing else.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Raises:
        CheckpointError: there are no tensors, or there is neither a config of a decoder nor a tree.
        UserError: both a config and a tree are given.
    """
    if tree is not None and config is not None:
        raise UserError("a tree needs no config: give one of the two")
    is_module = callable(getattr(tensors, "state_dict", None))
    state = tensors.state_dict() if is_module else tensors
    given = state if isinstance(state, Mapping) else local_path(state)
    if tree is not None:
        return suggest_tree(given, tree, rules)
    table = None
    if isinstance(given, Mapping):
        shapes = shapes_of(given)
    elif rules is None and config is not None:
        shapes = shapes_of(strip_wrappers(read_only_file(given)))
    else:
        shapes, config, table = _open(given, config, rules, strict, allow)
    if rules is not None and config is not None:
        table = resolve_family(rules).table(config, Layout())
    if not isinstance(config, DecoderConfig):
        raise CheckpointError("suggesting rules needs the config of a decoder: give its config")
    matcher = Matcher(config, shapes, table or RuleTable((), {}))
    return _describe(matcher, is_tied=config.head.tied)


def _open(
    path: Path, config: Config | None, rules: Any, strict: bool, allow: Sequence[str]
) -> tuple[dict[str, Shape], Config, RuleTable | None]:
    """Reads the shapes and the rules of a checkpoint, and its config unless one is given."""
    try:
        checkpoint = open_checkpoint(path, rules, strict=strict, allow=allow)
    except CheckpointError as error:
        if rules is not None or not path.exists():
            raise
        hint = "this is not a known checkpoint: give the model's config"
        raise CheckpointError([*error.problems, hint]) from None
    analysis = analyze_checkpoint(checkpoint)
    if analysis.config is None:
        raise CheckpointError(analysis.problems, path)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return shapes, config or analysis.config, analysis.table


def _describe(matcher: Matcher, *, is_tied: bool) -> Suggestions:
    """Turns the likeliest pairs into rules, and lists the doubts about each."""
    pairs = matcher.pairs()
    layouts = {tensor: matcher.layouts(tensor, targets) for tensor, targets in pairs.items()}
    wants_flipped = _stores_kernels_transposed(pairs, layouts)
    suggested: list[Suggested] = []
    for tensor, targets in pairs.items():
        chosen = choose_layout(targets[0], layouts[tensor], wants_flipped)
        doubts = [
            *_doubts(matcher, (tensor, targets), pairs),
            *_other_layouts(tensor, layouts[tensor], chosen),
        ]
        likeness = round(matcher.fit(tensor, targets), 3)
        for rule in make_rules(tensor, targets, chosen, matcher.sizes):
            suggested.append(Suggested(rule, likeness, tuple(doubts)))
            doubts = []  # only with the first rule of a fused tensor
    left = [tensor for tensor in matcher.stored if tensor not in pairs]
    filled = {target.name for targets in pairs.values() for target in targets}
    tied = _tied(pairs, left) if is_tied else {}
    return Suggestions(
        rules=tuple(sorted(suggested, key=lambda one: -one.likeness)),
        tied=tied,
        sizes=matcher.new_sizes,
        formulas=matcher.size_formulas,
        unmatched={tensor.name: tensor.shape for tensor in left if tensor.name not in tied},
        unfilled=tuple(target.name for target in matcher.targets if target.name not in filled),
    )


def _stores_kernels_transposed(pairs: Mapping[Stored, Targets], layouts: Layouts) -> bool:
    """Whether kernels are stored transposed, as in `torch.nn.Linear`.

    Decided by the majority of the kernels with only one possible layout.
    """
    votes = [
        is_flipped(targets[0], layouts[tensor][0][0])
        for tensor, targets in pairs.items()
        if targets[0].name.endswith("kernel") and len(layouts[tensor]) == 1
    ]
    return 2 * sum(votes) >= len(votes)


def _doubts(matcher: Matcher, match: Match, matches: Mapping[Stored, Targets]) -> Iterator[str]:
    """Yields the reasons to doubt a suggested match."""
    tensor, targets = match
    if len(targets) > 1:
        names = ", ".join(target.name.split(".")[-2] for target in targets)
        yield f"fused: assumes the usual order {names}, which no shape can confirm"
        return
    rivals = [
        others[0].name
        for rival, others in matches.items()
        if len(others) == 1 and _could_swap(matcher, match, (rival, others))
    ]
    if rivals:
        yield f"name and shape fit {', '.join(rivals)} about as well"
    elif matcher.fit(tensor, targets) < WEAK:
        yield "matched by shape only"
    elif matcher.has_equal_heads and re.search(r"\.[qkv]_proj\.", targets[0].name):
        yield "matched by name only: N = K, so queries, keys and values have the same shape"


def _could_swap(matcher: Matcher, one: Match, other: Match) -> bool:
    """Whether two tensors could be swapped, judging by shapes and names."""
    if one == other:
        return False
    swapped = [matcher.fit(one[0], other[1]), matcher.fit(other[0], one[1])]
    matched = matcher.fit(*one) + matcher.fit(*other)
    return min(swapped) > 0 and sum(swapped) > CLOSE * matched


def _other_layouts(tensor: Stored, layouts: list[list[Dims]], chosen: list[Dims]) -> Iterator[str]:
    """The other layouts that the tensor's shape allows."""
    for layout in layouts:
        if layout != chosen:
            sizes = " x ".join(map(str, tensor.shape))
            side = Side(tensor.name, layout[0]).text
            yield f'{sizes} does not determine the layout; it could also be "{side}"'


def _tied(pairs: Mapping[Stored, Targets], left: list[Stored]) -> dict[str, str]:
    """Unmatched tensors that have the shape of the embedding, which the head is tied to."""
    embeddings = [t for t, targets in pairs.items() if targets[0].name == "embed.embedding"]
    if not embeddings:
        return {}
    return {t.name: embeddings[0].name for t in left if t.shape == embeddings[0].shape}
