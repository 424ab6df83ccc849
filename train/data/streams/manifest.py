"""The manifest of a folder of token shards: how they were made, and what is in each."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import CheckpointError, UserError
from jaxllm.storage.whole_file import write_whole
from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.regular_files import read_bytes

from .sharded import Part, ShardedArray, ShardedStarts, sample_file
from .stream_writer import part_of
from .token_files import npy_part
from .windows import TokenStream

FILE = "manifest.json"
VERSION = 1
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard: its documents, and what identifies the content of its files."""

    name: str  # of the file of tokens, without .npy
    split: str
    documents: int
    tokens: int
    digests: Mapping[str, str]  # by array: "tokens", "starts" and perhaps "targets"
    samples: Mapping[str, str]  # likewise; see `sharded.sample_file`


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How shards were made, and all of them in order."""

    tokenizer: str  # its fingerprint
    vocab_size: int
    made_by: Mapping[str, Any]  # the options of the command
    skipped: int  # rows that could not be used
    shards: tuple[Shard, ...]
    version: int = VERSION

    def count(self, field: str, split: str) -> int:
        """Returns the sum of `documents` or `tokens` over the shards of a split."""
        return sum(getattr(shard, field) for shard in self.shards if shard.split == split)

    def write(self, folder: Path) -> None:
        """Writes the manifest, the last file of a folder of shards."""
        write_whole(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def describe_shard(file: Path, split: str) -> Shard:
    """Describes a shard that `StreamWriter` has written."""
    lines = file.with_suffix(".digest").read_text().splitlines()
    digests = dict(line.split(" ", 1) for line in lines)
    length = {name: read_length(part_of(file, name)) for name in digests}
    samples = {name: sample_file(part_of(file, name)) for name in digests}
    return Shard(file.stem, split, length["starts"], length["tokens"], digests, samples)


def read_length(file: Path) -> int:
    """Returns the length of the array in a .npy file."""
    return len(np.load(file, mmap_mode="r"))


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder. Raises UserError if it is not one of this version."""
    file = folder / FILE
    try:
        data = parse_json(read_bytes(file))
        shards = tuple(Shard(**shard) for shard in data.pop("shards"))
        manifest = Manifest(**data, shards=shards)
    except (CheckpointError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: this is no manifest of token shards: {error}") from None
    if manifest.version != VERSION:
        raise UserError(f"{file}: version {manifest.version} is not known; {VERSION} is")
    return manifest


def read_shards(folder: Path, manifest: Manifest, split: str, limit: int | None) -> TokenStream:
    """Returns the stream of a split.

    Raises UserError if a shard is missing or has changed, or there are none.
    """
    shards = [shard for shard in manifest.shards if shard.split == split and shard.documents]
    has_targets = any("targets" in shard.digests for shard in shards)
    names = ("tokens", "starts", "targets") if has_targets else ("tokens", "starts")
    parts = {name: [_part(folder, shard, name) for shard in shards] for name in names}
    tokens = ShardedArray(parts["tokens"], limit)
    targets = ShardedArray(parts["targets"]) if has_targets else None
    return TokenStream(tokens, ShardedStarts(parts["starts"], tokens), targets)


def _part(folder: Path, shard: Shard, name: str) -> Part:
    file = part_of(folder / f"{shard.name}.npy", name)
    if not file.exists():
        raise UserError(f"{file}: this shard is gone; {folder / FILE} names it")
    if sample_file(file) != shard.samples[name]:
        raise UserError(f"{file}: this shard is not the one that {folder / FILE} names")
    return npy_part(file)
