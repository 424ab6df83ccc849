"""The four source systems in plain PyTorch: the oracle that our layers are tested against.

Written from the documents, with the names and shapes of the original state dicts, to be read
from top to bottom; nothing here is fast, and nothing outside this package imports it but functions
of families and parity, which run these models beside ours. Modules run
on a CPU in any dtype: norms, softmax and rotations are computed in float32, or in float64 when the
model is. Buffers that checkpoints carry but that follow from the config (`freq_cis`, `pe`) are
stored and then recomputed in the precision of the pass. A model's `fields` are its config file.

    tlama        tlama-core: `Transformer(TlamaConfig)`
    llm          `LLM(ModelArgs)`, and Meta's Llama 3 and 4
    nima         `GPTModel` and the encoder-decoder `TransformerModel`
    components   regression, autoregressive and encoder-decoder models over continuous inputs

Arrays carry the letters of the project's legend: `q_BTNH`.
"""
