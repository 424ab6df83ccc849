"""PyTorch reference implementations of the four source systems; JAX layers are tested against them.

They follow the systems' documents and use the names and shapes of the original state dicts. They
are written to be read from top to bottom, not to be fast. The models are
imported only inside functions that run them beside the JAX models; this package imports nothing
else of jaxllm.interop.

Modules run on a CPU in any dtype: norms, softmax and rotations are computed in float32, or in
float64 if the model is. Buffers that checkpoints store but that follow from the config (`freq_cis`,
`pe`) are registered, and recomputed in the precision of the forward pass. A model's `fields` are
the contents of its config file.

    tlama        tlama-core: `Transformer(TlamaConfig)`
    llm          `LLM(ModelArgs)`, and Meta's Llama 3 and 4
    nima         `GPTModel` and the encoder-decoder `TransformerModel`
    components   regression, autoregressive and encoder-decoder models over continuous inputs

Arrays carry the letters of the project's legend: `q_BTNH`.
"""
