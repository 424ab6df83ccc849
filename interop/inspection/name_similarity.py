"""Similarity of tensor names to the names that the known families use for a model's arrays."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator

from jaxllm.config import Config
from jaxllm.interop.families import FAMILIES, Layout
from jaxllm.interop.rules.rule import Rule

# Maps words in names to a common word; words without meaning there map to "".
WORDS = {
    **dict.fromkeys(("attention", "attn", "mha", "self", "sa"), "attn"),
    **dict.fromkeys(("mlp", "ffn", "ff", "feed", "forward", "feedforward", "dense_relu"), "mlp"),
    **dict.fromkeys(("q", "wq", "query"), "q"),
    **dict.fromkeys(("k", "wk", "key"), "k"),
    **dict.fromkeys(("v", "wv", "value"), "v"),
    **dict.fromkeys(("qkv", "wqkv"), "q k v"),
    **dict.fromkeys(("kv", "wkv"), "k v"),
    **dict.fromkeys(("o", "wo", "out", "output"), "out"),
    **dict.fromkeys(("proj", "projection", "dense", "linear", "lin"), "proj"),
    **dict.fromkeys(("norm", "ln", "layernorm", "rmsnorm"), "norm"),
    **dict.fromkeys(("final", "f", "last"), "final"),
    **dict.fromkeys(("embed", "embedding", "embeddings", "emb"), "embed"),
    **dict.fromkeys(("tok", "token", "tokens", "word", "vocab"), "token"),
    **dict.fromkeys(("pos", "position", "positions", "positional"), "position"),
    "wte": "embed token",
    "wpe": "embed position",
    **dict.fromkeys(("head", "unembed", "unembedding", "classifier", "logits"), "head"),
    **dict.fromkeys(("bias", "b", "beta"), "bias"),
    **dict.fromkeys(("weight", "kernel", "scale", "gamma", "w", "g", "to", "lm", "model"), ""),
    **dict.fromkeys(("layer", "layers", "block", "blocks", "h", "transformer", "decoder"), ""),
}

# Names from encoder-decoders, which no decoder family uses.
T5 = {
    "mlp.wi_0.weight": "layers.{L}.mlp.gate_proj.kernel",
    "mlp.wi_1.weight": "layers.{L}.mlp.up_proj.kernel",
}

OTHER_KIND = 0.3  # factor if only one of tensor and array is a bias

Targets = tuple[str, ...]  # the names of the arrays that a tensor fills


class Vocabulary:
    """The words that families use in the names of the tensors that fill a model's arrays."""

    def __init__(self, config: Config, targets: Collection[Targets]):
        self.known: dict[Targets, set[frozenset[str]]] = {}
        for own in targets:
            for name in own:
                self.known.setdefault(own, set()).add(words(name))
        for stored, filled in _family_names(config):
            if filled in targets:
                self.known[filled].add(words(stored))
        used = Counter(word for sets in self.known.values() for word in frozenset().union(*sets))
        self.weight = {word: math.log(1 + len(self.known) / n) for word, n in used.items()}

    def likeness(self, name: str, targets: Targets) -> float:
        """Returns the similarity of a name to the known names of these arrays: from 0 to 1."""
        given = words(name)
        is_other = ("bias" in given) != targets[0].endswith("bias")
        best = max(
            self._sum(given & known) / max(self._sum(given | known), 1e-9)
            for known in self.known[targets]
        )
        return best * (OTHER_KIND if is_other else 1)

    def _sum(self, chosen: frozenset[str]) -> float:
        return sum(self.weight.get(word, 0.0) for word in chosen)


def words(name: str) -> frozenset[str]:
    """Returns the normalized words of a name: attn, q for `blocks.{L}.selfAttention.wq.weight`."""
    name = re.sub(r"\{[^}]*\}", ".", name)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    name = re.sub(r"(norm|(?<![a-z])ln)(?=\d)", r"\1_", name)
    parts = [part for part in re.split(r"[^a-z0-9]+", name) if part]
    found = (WORDS.get(part, part).split() for part in parts)
    return frozenset(itertools.chain.from_iterable(found))


def _family_names(config: Config) -> Iterator[tuple[str, Targets]]:
    """Yields the tensor names that each family would use for this model, and what they fill."""
    yield from ((stored, (filled,)) for stored, filled in T5.items())
    for family in FAMILIES:
        try:
            table = family.table(config, Layout())
        except (ValueError, AttributeError, TypeError):  # the family does not support this model
            continue
        fused: dict[str, list[str]] = {}
        for rule in table.rules:
            whole, is_part, _ = rule.stored.name.partition("#")
            if is_part:
                fused.setdefault(whole, []).append(rule.model.name)
            else:
                yield from _expanded(rule)
        for whole, filled in fused.items():
            yield whole, tuple(filled)


def _expanded(rule: Rule) -> Iterator[tuple[str, Targets]]:
    """Expands the labels in a rule's names: yields each stored name and the arrays it fills."""
    labels = {**rule.model.labels, **rule.stored.labels}
    own = [axes for axes in labels if axes in rule.stored.labels]
    for chosen in itertools.product(*(range(len(labels[axes])) for axes in own)):
        position = dict(zip(own, chosen, strict=True))
        rest = [axes for axes in rule.model.labels if axes not in position]
        filled = tuple(
            _fill(rule.model.name, {**position, **dict(zip(rest, free, strict=True))}, labels)
            for free in itertools.product(*(range(len(labels[axes])) for axes in rest))
        )
        yield _fill(rule.stored.name, position, labels), filled


def _fill(name: str, position: dict[str, int], labels: dict[str, list[str]]) -> str:
    for axes, i in position.items():
        name = re.sub(rf"\{{{axes}=[^}}]*\}}", labels[axes][i], name)
    return name
