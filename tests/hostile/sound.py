"""Sound files of every format that jaxllm reads, small: what mutations damage."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from gguf_files import KINDS, write_gguf
from safetensors.torch import load_file
from tiny import random_model
from torch.distributed import checkpoint as distributed

from jaxllm.interop import save_pretrained

MODEL = {"num_layers": 1, "head_dim": 8, "vocab_size": 300, "mlp_dim": 8}


def write_all(root: Path) -> None:
    """Writes the folders that `targets` names."""
    model = random_model(**MODEL)
    for form, name in (("hf", "hf"), ("meta", "meta"), ("tlama", "tlama"), ("native", "native")):
        save_pretrained(model, root / name, format=form)
    save_pretrained(model, root / "shards", format="hf", max_shard=12_000)
    save_pretrained(model, root / "journal" / "source", format="hf")
    _write_tokenizer(root / "hf")
    tensors = load_file(root / "hf" / "model.safetensors")
    (root / "bin").mkdir()
    shutil.copy(root / "hf" / "config.json", root / "bin")
    torch.save(tensors, root / "bin" / "pytorch_model.bin")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "a/b", "target_modules": ["q"]}
    (root / "bin" / "adapter_config.json").write_text(json.dumps(adapter))
    (root / "legacy").mkdir()
    shutil.copy(root / "hf" / "config.json", root / "legacy")
    old = {"_use_new_zipfile_serialization": False}
    torch.save(tensors, root / "legacy" / "pytorch_model.bin", **old)
    _write_dcp(root / "dcp", tensors)
    shutil.copy(root / "hf" / "config.json", root / "dcp")
    _write_gguf(root / "gguf")
    _write_runs(root)


def _write_gguf(folder: Path) -> None:
    folder.mkdir()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "num_key_value_heads": 1, "vocab_size": 40}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    fields = {"embedding_length": 32, "feed_forward_length": 32, "attention.head_count": 2}
    fields |= {"block_count": 1, "attention.head_count_kv": 1, "context_length": 64}
    fields |= {"attention.layer_norm_rms_epsilon": 1e-5}
    write_gguf(folder / "model.gguf", model, "llama", fields, KINDS.Q8_0)


def _write_tokenizer(folder: Path) -> None:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    pattern = {"Regex": r"\s+|\p{L}+"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    vocab = {"a": 0, "b": 1, "ab": 2, "</s>": 3}
    bpe = {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": [["a", "b"]]}
    whole = {"version": "1.0", **empty, "pre_tokenizer": split, "added_tokens": [], "model": bpe}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    loop = "a{% for m in messages %}{{ m.role[:1] * 2 ~ m.content | trim }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)


def _write_dcp(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [torch.nn.Parameter(tensor.float()) for tensor in tensors.values()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    names = list(tensors)
    state = {names[key]: entry for key, entry in optimizer.state_dict()["state"].items()}
    group = {**optimizer.state_dict()["param_groups"][0], "params": names}
    whole = {"model": dict(zip(names, parameters, strict=True))}
    whole["optimizer"] = {"state": state, "param_groups": [group]}
    distributed.save(whole, checkpoint_id=folder)
    run = {"output": "out", "steps": 2, "batch_size": 1, "seq_len": 8, "init_from": str(folder)}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))


def _write_runs(root: Path) -> None:
    small = {"embed_dim": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    small |= {"head_dim": 4, "mlp_dim": 8}
    (root / "run").mkdir()
    run = {"output": "out", "steps": 2, "batch_size": 1, "seq_len": 8}
    text = {**run, "model": {"vocab_size": 256, **small}, "optimizer": {"learning_rate": 1e-3}}
    (root / "run" / "run.yaml").write_text(yaml.safe_dump(text))
    (root / "run" / "config.yaml").write_text(yaml.safe_dump(text))
    lines = [json.dumps({"step": step, "loss": 2.0 / step}) for step in (1, 2)]
    (root / "run" / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    (root / "vectors").mkdir()
    rows = np.random.default_rng(0).normal(size=(8, 9, 3)).astype(np.float32)
    np.savez(root / "vectors" / "data.npz", inputs=rows)
    model = {"input_dim": 3, "output_dim": 3, "attention": {"causal": True}, **small}
    # After the file is read, its shapes are refused: a training would take far longer.
    data = {
        **run,
        "seq_len": 9,
        "model": model,
        "data": {"vectors": str(root / "vectors" / "data.npz")},
    }
    (root / "vectors" / "run.yaml").write_text(yaml.safe_dump(data))
    journal = root / "journal" / "new.partial" / "journal.jsonl"
    journal.parent.mkdir()
    digest = {"tensor": "00/norm.weight", "digest": ["ab", 7]}
    journal.write_text("\n".join([json.dumps({"plan": {"to": "meta"}}), json.dumps(digest), ""]))
