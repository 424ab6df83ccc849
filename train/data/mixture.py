"""Mixtures: several sources of documents, each with its share of the tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from jaxllm.config.problems import explain
from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model

from .batches import Batch, Examples, Mixing, Rows
from .chat import ChatConfig
from .documents import DataConfig
from .held_out import check_split
from .tokens import TokensConfig

Source = DataConfig | ChatConfig | TokensConfig
SOURCES: dict[str, type[Source]] = {"chat": ChatConfig, "tokens": TokensConfig}


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A mixture: sources by name, and the share of the tokens that each has."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = Decoder

    mixture: dict[str, Source]  # `text`, `chat` or `tokens` by name, each with its own fields
    # The share of each in the tokens that are trained on, in any unit; None: as many as there are
    weights: dict[str, float] | None = None
    # Of all sources: tokenizer.json, a folder with files of a tokenizer, or "bytes"; None: that of
    # init_from, and bytes for a new model
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    seed: int = 0  # for the order of the rows
    packing: ClassVar[str] = "mixed"  # rows have segments, whatever the sources

    def __post_init__(self) -> None:
        check_split(0, self.seed)
        if not self.mixture:
            raise UserError("data.mixture names no source")
        for name, source in self.mixture.items():
            for shared in ("tokenizer", "eos", "seed"):
                if getattr(source, shared) not in (None, 0):
                    raise UserError(
                        f"data.mixture.{name}.{shared} is set; all sources have data.{shared}"
                    )
        if self.weights is not None:
            if self.weights.keys() != self.mixture.keys():
                raise UserError(
                    f"data.weights names {', '.join(self.weights)}, but the sources are "
                    f"{', '.join(self.mixture)}"
                )
            if wrong := [name for name, weight in self.weights.items() if not 0 < weight < np.inf]:
                raise UserError(f"data.weights.{wrong[0]}={self.weights[wrong[0]]} is not positive")

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads each source for `model`.

        Raises:
            UserError: a source cannot be loaded, or has no row to train on; names it.
            OSError: a file is missing or cannot be read.
        """
        loaded = {}
        for name, source in self.mixture.items():
            try:
                own = replace(source, tokenizer=self.tokenizer, eos=self.eos)
                loaded[name] = own.load(model, seq_len)
            except UserError as error:
                raise UserError(f"data.mixture.{name}: {error}") from error
            if not len(loaded[name].train):
                raise UserError(f"data.mixture.{name} has no row to train on")
        train = MixedRows([each.train for each in loaded.values()])
        sizes = {name: each.train.num_tokens for name, each in loaded.items()}
        weights = sizes if self.weights is None else self.weights
        fingerprint: dict[str, Any] = {
            f"{name}/{key}": value
            for name, each in loaded.items()
            for key, value in each.fingerprint.items()
        }
        fingerprint["weights"] = {name: float(weights[name]) for name in loaded}
        mixing = Mixing(
            tuple(loaded),
            tuple(len(each.train) for each in loaded.values()),
            tuple(weights[name] / (sizes[name] / len(loaded[name].train)) for name in loaded),
        )
        held_out = MixedRows([each.held_out for each in loaded.values()])
        return Examples(train, held_out, fingerprint, mixing)


@dataclass(frozen=True)
class MixedRows:
    """The rows of several sources, those of the second behind those of the first."""

    parts: Sequence[Rows]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def num_tokens(self) -> int:
        """The tokens of all rows, without padding."""
        return sum(part.num_tokens for part in self.parts)

    def take(self, rows: np.ndarray) -> Batch:
        """Returns the examples at these row numbers.

        `sources`, bool (B, S), says which source each row is from. Rows of joined documents are one
        segment.
        """
        ends = np.cumsum([len(part) for part in self.parts])
        rows = np.asarray(rows)
        source = ends.searchsorted(rows, side="right")
        batch: Batch = {}
        for number in map(int, np.unique(source)):
            chosen = source == number
            first = ends[number] - len(self.parts[number])
            taken = _with_segments(self.parts[number].take(rows[chosen] - first))
            for name, array in taken.items():
                whole = batch.setdefault(name, np.zeros((len(rows), *array.shape[1:]), array.dtype))
                whole[chosen] = array
        return {**batch, "sources": source[:, None] == np.arange(len(self.parts))}


def _with_segments(batch: Batch) -> Batch:
    """Gives rows of joined documents one segment, and positions from the row's beginning."""
    if "segment_ids" in batch:
        return batch
    shape = batch["mask"].shape
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return {**batch, "segment_ids": np.ones(shape, np.int32), "positions": positions}


def source_class(values: Mapping[str, Any]) -> type[Source]:
    """Returns the class of a source, which these field names select; DataConfig by default."""
    return next((SOURCES[name] for name in SOURCES if name in values), DataConfig)


def find_problems(data: Any) -> list[str]:
    """Returns a line for each problem of the sources in the data of a run.

    Pydantic, which tries each class of source, would return those of every class.
    """
    mixture = data.get("mixture") if isinstance(data, Mapping) else None
    if not isinstance(mixture, Mapping):
        return []
    from pydantic import TypeAdapter, ValidationError

    problems = []
    for name, values in mixture.items():
        if isinstance(values, Mapping):
            kind = source_class(values)
            try:
                TypeAdapter(kind).validate_python(values)
            except ValidationError as error:
                found = (problem.text for problem in explain(error, kind))
                problems += [f"data.mixture.{name}: {text}" for text in found]
        else:
            problems.append(f"data.mixture.{name}: expected a mapping of fields")
    return problems
