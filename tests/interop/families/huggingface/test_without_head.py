"""Models without a head give the hidden states of transformers, and go back as they came."""

import json

import numpy as np
import pytest
import torch
import transformers
from hf_case import SIZES, randomize, stored
from tiers import examples, exhaustive
from tiny import relative_l2

from jaxllm.config import has_head
from jaxllm.errors import UserError
from jaxllm.generation import generate
from jaxllm.interop import convert, load_pretrained, save_pretrained
from jaxllm.interop.parity.checkpoint import check_checkpoint
from jaxllm.models import EncoderDecoder

LAYERS = {**SIZES, "num_hidden_layers": 2}
PLAIN = {name: LAYERS[name] for name in LAYERS.keys() - {"head_dim", "num_key_value_heads"}}
T5 = {"vocab_size": 96, "d_model": 48, "d_kv": 16, "d_ff": 56, "num_layers": 2, "num_heads": 6}
BART = {
    **{"vocab_size": 96, "d_model": 48, "max_position_embeddings": 512},
    **{"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 56, "decoder_ffn_dim": 40},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 6},
}
GPT2 = {"vocab_size": 96, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 512}
GPTJ = {**GPT2, "rotary_dim": 8}
# The model's class, the config's class, its arguments, and the tensors that are carried along.
CASES = {
    "llama": ("LlamaModel", "Llama", LAYERS, ""),
    "qwen3, tied": ("Qwen3Model", "Qwen3", {**LAYERS, "tie_word_embeddings": True}, ""),
    "gemma2": ("Gemma2Model", "Gemma2", LAYERS, ""),
    "gpt_neox": ("GPTNeoXModel", "GPTNeoX", PLAIN, ""),
    "gpt2": ("GPT2Model", "GPT2", GPT2, ""),
    "phi": ("PhiModel", "Phi", PLAIN, ""),
    "gptj": ("GPTJModel", "GPTJ", GPTJ, ""),
    "t5": ("T5Model", "T5", T5, ""),
    "t5_encoder": ("T5EncoderModel", "T5", {**T5, "feed_forward_proj": "gated-gelu"}, ""),
    "reward": ("LlamaForSequenceClassification", "Llama", {**LAYERS, "num_labels": 1}, "score."),
    "tokens": ("Qwen2ForTokenClassification", "Qwen2", {**LAYERS, "num_labels": 3}, "score."),
    "answers": ("LlamaForQuestionAnswering", "Llama", LAYERS, "qa_outputs."),
    "bart": ("BartForSequenceClassification", "Bart", BART, "classification_head."),
    "t5, labels": ("T5ForSequenceClassification", "T5", T5, "classification_head."),
}
TOLERANCE = 1e-5


@pytest.fixture(params=examples(CASES, "qwen3, tied", "gpt2", "t5_encoder", "bart"))
def case(request, tmp_path):
    name, config, arguments, carried = CASES[request.param]
    built = getattr(transformers, config + "Config")(**arguments, attn_implementation="eager")
    original = randomize(getattr(transformers, name)(built)).eval()
    original.save_pretrained(tmp_path / "original")
    return original, tmp_path / "original", carried


@pytest.mark.cases(2, exhaustive=5)
def test_hidden_states_match_transformers_and_tensors_go_back(case, tmp_path, caplog):
    original, folder, carried = case
    model = load_pretrained(folder)
    assert not has_head(model.config)
    tokens = np.random.default_rng(0).integers(3, 96, (2, 320))
    base, given = getattr(original, original.base_model_prefix, original), torch.tensor(tokens)
    is_pair = isinstance(model, EncoderDecoder)
    options = {"decoder_input_ids": given} if is_pair else {}
    with torch.no_grad():
        expected = base(input_ids=given, **options).last_hidden_state.numpy()
    found = model(tokens, tokens) if is_pair else model(tokens)
    assert relative_l2(found.logits, expected) <= TOLERANCE

    assert [carried in message for message in caplog.messages] == [True] * bool(carried)
    save_pretrained(model, tmp_path / "out")
    save_pretrained(model, tmp_path / "native", format="native")
    convert(tmp_path / "native", tmp_path / "back")
    bits = stored(folder)
    assert stored(tmp_path / "out") == stored(tmp_path / "back") == bits
    before, after = (
        json.loads((one / "config.json").read_text()) for one in (folder, tmp_path / "out")
    )
    for field in ("architectures", "tie_word_embeddings", "final_logit_softcapping"):
        assert after.get(field) == before.get(field)

    model.origin = None
    save_pretrained(model, tmp_path / "new", format="hf")
    again = load_pretrained(tmp_path / "new")
    if again.origin.family != "bart":  # where `BartModel` names language models too
        assert again.config == model.config


@pytest.mark.exhaustive
def test_an_embedding_model_of_sentence_transformers_gives_hidden_states(tmp_path):
    """Qwen3-Embedding names a causal language model as its architecture."""
    config = transformers.Qwen3Config(**LAYERS, tie_word_embeddings=True)
    randomize(transformers.Qwen3ForCausalLM(config)).save_pretrained(tmp_path)
    assert has_head(load_pretrained(tmp_path).config)
    (tmp_path / "modules.json").write_text("[]")
    model = load_pretrained(tmp_path)
    assert not has_head(model.config)
    report = check_checkpoint(tmp_path, levels=["weights", "config", "logits"], num_tokens=320)
    assert report.ok, report
    assert set(report.verdicts) == {"weights", "config", "logits"}
    with pytest.raises(UserError, match=r"no head \(head.kind='none'\), so it cannot generate"):
        generate(model, [[1, 2]], 3)


@pytest.mark.parametrize("levels", [["weights", "config"], *exhaustive([None])])
def test_the_encoder_of_t5_is_compared_with_its_own_class(levels, tmp_path):
    original = transformers.T5EncoderModel(transformers.T5Config(**T5))
    randomize(original).save_pretrained(tmp_path)
    report = check_checkpoint(tmp_path, levels=levels, num_tokens=320)
    assert report.ok, report
    assert set(report.verdicts) == set(levels or ("weights", "config", "logits", "layers"))


def test_an_untied_language_model_without_its_head_is_damaged(tmp_path):
    original = randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LAYERS)))
    state = original.state_dict()
    del state["lm_head.weight"]
    original.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        load_pretrained(tmp_path)
