"""Targets: files to damage, and the commands that read them."""

from typing import NamedTuple


class Target(NamedTuple):
    """A file to damage, and the command that reads it; `{}` stands for its folder."""

    folder: str
    file: str
    command: tuple[str, ...]


INSPECT, VERIFY = ("inspect", "{}"), ("verify", "{}")
GGUF = ("inspect", "{}/model.gguf")
GGUF_WEIGHTS = ("convert", "{}/model.gguf", "{}/new", "--to", "meta")
PLAN = ("plan", "{}/run.yaml")
ARRAYS = ("train", "{}/run.yaml", "--output", "{}/out")
RESUME = ("convert", "{}/source", "{}/new", "--to", "meta")
PROMPT = ("generate", "{}", "--prompt", "ab", "--max-new-tokens", "1")
CHAT = (*PROMPT, "--chat")
OPTIMIZER = ("convert", "{}", "{}/new", "--with-optimizer", "--config", "{}/run.yaml")
DIFF = ("diff", "{}", "{}")
TARGETS = (
    *(Target("hf", "model.safetensors", INSPECT), Target("hf", "config.json", INSPECT)),
    *(Target("hf", "model.safetensors", VERIFY), Target("hf", "tokenizer.json", PROMPT)),
    *(
        Target("hf", "generation_config.json", PROMPT),
        Target("hf", "tokenizer_config.json", PROMPT),
    ),
    *(Target("hf", "chat_template.jinja", CHAT), Target("bin", "adapter_config.json", INSPECT)),
    *(Target("shards", "model.safetensors.index.json", INSPECT),),
    *(Target("bin", "pytorch_model.bin", INSPECT), Target("bin", "pytorch_model.bin", VERIFY)),
    *(Target("legacy", "pytorch_model.bin", VERIFY), Target("dcp", "__0_0.distcp", VERIFY)),
    *(Target("meta", "consolidated.00.pth", INSPECT), Target("meta", "params.json", INSPECT)),
    *(Target("gguf", "model.gguf", GGUF), Target("gguf", "model.gguf", GGUF_WEIGHTS)),
    *(Target("tlama", "state_dict.pth", INSPECT),),
    *(Target("native", "checkpoints/0/_CHECKPOINT_METADATA", INSPECT),),
    *(Target("native", "checkpoints/0/model/_METADATA", INSPECT),),
    *(Target("dcp", ".metadata", OPTIMIZER), Target("dcp", "__0_0.distcp", OPTIMIZER)),
    *(Target("run", "run.yaml", PLAN), Target("run", "metrics.jsonl", DIFF)),
    *(Target("vectors", "data.npz", ARRAYS),),
    *(Target("journal", "new.partial/journal.jsonl", RESUME),),
)
