"""`python benchmarks/released_configs.py FILE`: reads configs as released, writes their table.

FILE has a JSON object that maps each name to an object with its `config`, spelled as it was
released. Each config of a supported type is read in full. A small model with the same settings and
random float32 weights is then compared with transformers by its logits. The table is written to
docs/released_configs.md.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jax
import numpy as np
import torch
import transformers

from jaxllm.config import make_config
from jaxllm.interop import load_pretrained
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.formats.quantized.codecs import take_settings

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from hf_case import randomize  # noqa: E402
from tiny import relative_l2  # noqa: E402

PAGE = ROOT / "docs" / "released_configs.md"
TOLERANCE = 1e-5  # relative L2 of logits
LENGTH, VOCAB, HEADS, WINDOW, ORIGINAL = 320, 96, 4, 100, 128
# Few layers: in deep models with random numbers, rounding alone reaches 1e-3. Patterns need more.
LAYERS, PATTERNED = 3, 7
# Sizes of the small models; of what a config has, only these change, and what depends on them.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 64),
    **dict.fromkeys(("intermediate_size", "d_ff", "moe_intermediate_size"), 56),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), LAYERS),
    **dict.fromkeys(("num_layers", "num_decoder_layers"), LAYERS - 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), HEADS),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"), 32),
    **{"n_routed_experts": 16, "first_k_dense_replace": 1, "qk_rope_head_dim": 16},
    **dict.fromkeys(("n_ctx", "n_positions"), 512),
    **dict.fromkeys(("sliding_window", "sliding_window_size"), WINDOW),
    **dict.fromkeys(("head_dim", "query_pre_attn_scalar"), 24),
    **{"vocab_size": VOCAB, "d_kv": 16, "num_experts_per_tok": 2},
}
PATTERNS = ("sliding_window_pattern", "layer_types", "no_rope_layers")
LONGEST, TRAINED = "max_position_embeddings", "original_max_position_embeddings"
CLASSES = {
    True: transformers.AutoModelForSeq2SeqLM,
    False: transformers.AutoModelForCausalLM,
}
PREAMBLE = """\
# Released configs

This page shows which of {total} configs of public models jaxllm reads. {supported} are of a
supported [family](families.md): {read} are read and {refused} refused. Each is read as it was
released. Then a model of the same config, but of a few small layers, was filled with random
numbers by transformers {version}, and read with its config spelled as before. The last
column is the relative L2 error of the logits of {length} tokens, in float32; at most
{tolerance:.0e} is required.

"Text part" stands for multimodal models, whose logits the tests compare. `--allow FIELD`
reads a refused config at your own risk. `python benchmarks/released_configs.py FILE`
writes this page from a file with the configs.

| config | type | result | relative L2 |
|---|---|---|---|
"""


class Row(NamedTuple):
    """The result for one config."""

    name: str
    model_type: str
    problems: list[str]
    relative_l2: float | None  # None if it was not computed

    def __str__(self) -> str:
        result = "refused: " + "; ".join(self.problems) if self.problems else "read"
        error = "text part" if self.relative_l2 is None else f"{self.relative_l2:.1e}"
        return f"| {self.name} | {self.model_type} | {result} | {'' if self.problems else error} |"


def rows(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Reads each config of a supported type, and compares the logits of a small model."""
    families: dict[Any, Any] = {}
    for family in FAMILIES:
        if family.format == "hf":
            families.setdefault(family.model_type, family)
    for name, entry in sorted(configs.items()):
        config = entry["config"]
        if (family := families.get(config.get("model_type"))) is None:
            continue
        problems = read_whole(family, config)
        is_nested = family.is_part or "text_config" in config
        error = None if problems or is_nested else compare_small(config)
        yield Row(name, family.model_type, problems, error)


def read_whole(family: Any, config: dict[str, Any]) -> list[str]:
    """Returns why a config is refused; shortened, since values may be long."""
    fields = family.fields(take_settings(config)[0])
    try:
        values, _ = family.read_config(fields, {})
        if not (problems := fields.finish()):
            make_config(values)
    except ValueError as error:
        problems = [str(error)]
    return [problem if len(problem) < 80 else f"{problem[:70]} ..." for problem in problems]


def compare_small(config: dict[str, Any]) -> float:
    """Returns the relative L2 error of the logits of a small model of a config."""
    config = shrink(config)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        original = _save(folder, config)
        model = load_pretrained(folder)
        tokens = np.random.default_rng(1).integers(4, VOCAB, (1, LENGTH))
        given = {"input_ids": torch.from_numpy(tokens)}
        if is_pair := original.config.is_encoder_decoder:
            given["decoder_input_ids"] = given["input_ids"]
        with torch.no_grad():
            expected = original(**given)[0].numpy()
        inputs = (tokens, tokens) if is_pair else (tokens,)
        found = jax.jit(lambda model, *inputs: model(*inputs).logits)(model, *inputs)
    return relative_l2(found, expected)


def _save(folder: Path, config: dict[str, Any]) -> Any:
    """Saves transformers' model with random numbers beside the config as it stands."""
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    (folder / "config.json").write_text(json.dumps(config))
    read = transformers.AutoConfig.from_pretrained(folder)
    kind = CLASSES[read.is_encoder_decoder]
    architecture = (config.get("architectures") or [""])[0]
    if architecture.endswith("Model") and not architecture.endswith("LMHeadModel"):
        kind = transformers.AutoModel  # without a head
    randomize(kind.from_config(read, **options)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return kind.from_pretrained(folder, **options).eval()


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with small sizes, each under the name that it has in the original."""
    small: dict[str, Any] = {
        name: SIZES[name] if name in SIZES and _is_size(value) else value
        for name, value in config.items()
    }
    if any(name.endswith(PATTERNS) for name in config):
        small["num_hidden_layers"] = PATTERNED
    heads = config.get("num_attention_heads")
    if groups := config.get("num_key_value_heads"):
        small["num_key_value_heads"] = {heads: HEADS, 1: 1}.get(groups, HEADS // 2)
    for name in ("layer_types", "no_rope_layers"):
        if isinstance(config.get(name), list):
            small[name] = config[name][: small["num_hidden_layers"]]
    for name, value in config.items():
        if name.endswith("token_id"):
            several = isinstance(value, list)
            small[name] = [each % VOCAB for each in value] if several else _below(value)
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(name), dict):
            _shrink_rope(small, dict(config[name]), name, config)
    return small


def _shrink_rope(
    small: dict[str, Any], rope: dict[str, Any], name: str, config: dict[str, Any]
) -> None:
    """Shortens the contexts, but not the ratio of long and short, and the lists of factors."""
    trained = rope.get(TRAINED) or config.get(TRAINED)
    if trained and config.get(LONGEST):
        small[LONGEST] = ORIGINAL * config[LONGEST] // trained
    if TRAINED in config:
        small[TRAINED] = ORIGINAL
    if TRAINED in rope:
        rope[TRAINED] = ORIGINAL
    head_dim = small.get("head_dim") or 64 // HEADS
    count = int(head_dim * (config.get("partial_rotary_factor") or 1.0)) // 2
    for factors in ("long_factor", "short_factor"):
        if factors in rope:
            rope[factors] = rope[factors][:count]
    small[name] = rope


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _below(token: Any) -> Any:
    return token % VOCAB if _is_size(token) and token >= 0 else token


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", help="the configs by name")
    configs = json.loads(Path(parser.parse_args().file).read_text())
    found = []
    for row in rows(configs):
        print(row, flush=True)
        found.append(row)
    refused = sum(bool(row.problems) for row in found)
    text = PREAMBLE.format(
        total=len(configs),
        supported=len(found),
        read=len(found) - refused,
        refused=refused,
        version=transformers.__version__,
        length=LENGTH,
        tolerance=TOLERANCE,
    )
    PAGE.write_text(text + "".join(f"{row}\n" for row in found))


if __name__ == "__main__":
    main()
