"""Llama 4's image encoder in the Hugging Face and Meta formats: config and tensor rules."""

import re
from collections.abc import Mapping

from jaxllm.config import DecoderConfig, VisionConfig
from jaxllm.interop.families.common.fairscale import SHARD
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.rope import read_rope
from jaxllm.interop.rules.rule import Rule

IMAGE_TOKEN = 200092  # `<|patch|>` of Llama 4's tokenizer, a constant of Meta's code
NORM_EPS = 1e-5  # PyTorch's default, used by both regardless of their configs

# For each module of the model, its tensors as stored and as arrays. T counts shards; a lower-case
# axis is one shard's part. Tensors that are not split are copied to every shard.
LAYER = "vision.layers.{Lv}."
NORM = (("weight : Dv", "scale : Dv"), ("bias : Dv", "bias : Dv"))
HEADS = (("weight : (nv Hv) Dv", "kernel : Dv (T nv) Hv"), ("bias : (nv Hv)", "bias : (T nv) Hv"))
TENSORS = {
    "vision.patch_embed": (("weight : dv Pv", "kernel : Pv (T dv)"),),
    "vision": (
        ("class_embedding : Dv", "class_embedding : Dv"),
        ("positional_embedding_vlm : Tv Dv", "embed_position.embedding : Tv Dv"),
    ),
    "vision.first_norm": NORM,
    "vision.final_norm": NORM,
    LAYER + "attn_norm": NORM,
    LAYER + "q_proj": HEADS,
    LAYER + "k_proj": HEADS,
    LAYER + "v_proj": HEADS,
    LAYER + "o_proj": (
        ("weight : Dv (nv Hv)", "kernel : (T nv) Hv Dv"),
        ("bias : Dv", "bias : Dv"),
    ),
    LAYER + "mlp_norm": NORM,
    LAYER + "mlp.up_proj": (
        ("weight : fv Dv", "kernel : Dv (T fv)"),
        ("bias : fv", "bias : (T fv)"),
    ),
    LAYER + "mlp.down_proj": (
        ("weight : Dv fv", "kernel : (T fv) Dv"),
        ("bias : Dv", "bias : Dv"),
    ),
    "vision.adapter_in": (("weight : ov Sv", "kernel : Sv (T ov)"),),
    "vision.adapter_out": (("weight : Ov ov", "kernel : (T ov) Ov"),),
    "image_proj": (("weight : d Ov", "kernel : Ov (T d)"),),
}
# The split axes, by their names in the config.
VISION_SPLIT = {
    "vision.embed_dim": "Dv",
    "vision.num_heads": "Nv",
    "vision.mlp_dim": "Fv",
    "vision.output_dim": "Ov",
    "embed_dim": "D",
}
_THEIRS, _META = "vision_model.", "vision_embeddings.vision_encoder."
HF_NAMES = {
    "vision.patch_embed": _THEIRS + "patch_embedding.linear",
    "vision": "vision_model",
    "vision.first_norm": _THEIRS + "layernorm_pre",
    "vision.final_norm": _THEIRS + "layernorm_post",
    LAYER + "attn_norm": _THEIRS + "model.layers.{Lv}.input_layernorm",
    LAYER + "q_proj": _THEIRS + "model.layers.{Lv}.self_attn.q_proj",
    LAYER + "k_proj": _THEIRS + "model.layers.{Lv}.self_attn.k_proj",
    LAYER + "v_proj": _THEIRS + "model.layers.{Lv}.self_attn.v_proj",
    LAYER + "o_proj": _THEIRS + "model.layers.{Lv}.self_attn.o_proj",
    LAYER + "mlp_norm": _THEIRS + "model.layers.{Lv}.post_attention_layernorm",
    LAYER + "mlp.up_proj": _THEIRS + "model.layers.{Lv}.mlp.fc1",
    LAYER + "mlp.down_proj": _THEIRS + "model.layers.{Lv}.mlp.fc2",
    "vision.adapter_in": _THEIRS + "vision_adapter.mlp.fc1",
    "vision.adapter_out": _THEIRS + "vision_adapter.mlp.fc2",
    "image_proj": "multi_modal_projector.linear_1",
}
META_NAMES = {
    "vision.patch_embed": _META + "conv1._linear",
    "vision": "vision_embeddings.vision_encoder",
    "vision.first_norm": _META + "ln_pre",
    "vision.final_norm": _META + "ln_post",
    LAYER + "attn_norm": _META + "transformer.resblocks.{Lv}.ln_1",
    LAYER + "q_proj": _META + "transformer.resblocks.{Lv}.attn.wq",
    LAYER + "k_proj": _META + "transformer.resblocks.{Lv}.attn.wk",
    LAYER + "v_proj": _META + "transformer.resblocks.{Lv}.attn.wv",
    LAYER + "o_proj": _META + "transformer.resblocks.{Lv}.attn.wo",
    LAYER + "mlp_norm": _META + "transformer.resblocks.{Lv}.ln_2",
    LAYER + "mlp.up_proj": _META + "transformer.resblocks.{Lv}.mlp.c_fc",
    LAYER + "mlp.down_proj": _META + "transformer.resblocks.{Lv}.mlp.c_proj",
    "vision.adapter_in": "vision_embeddings.vision_adapter.mlp.c_fc",
    "vision.adapter_out": "vision_embeddings.vision_adapter.mlp.c_proj",
    "image_proj": "vision_projection",
}


def vision_rules(names: Mapping[str, str]) -> list[Rule]:
    """Rules for every tensor of the encoder with these module names, by shard: `00/norm.weight`."""
    return [
        Rule(f"{SHARD}{names[module]}.{stored}", f"{module}.{model}", "" if cut else "T")
        for module, tensors in TENSORS.items()
        for stored, model in tensors
        for cut in [re.search(r"\bT\b", model)]
    ]


def vision_sizes(vision: VisionConfig) -> dict[str, int]:
    """Returns the axis sizes of `vision_rules`."""
    return {
        "Lv": vision.num_layers,
        "Dv": vision.embed_dim,
        "Nv": vision.num_heads,
        "Hv": vision.embed_dim // vision.num_heads,
        "Fv": vision.mlp_dim,
        "Ov": vision.output_dim,
        "Pv": vision.num_channels * vision.patch_size**2,
        "Sv": vision.embed_dim * vision.shuffle**2,
        "Tv": vision.num_patches + 1,
    }


def read_hf_vision(fields: Fields, image_token: int) -> VisionConfig | None:
    """Reads the encoder from a `vision_config`."""
    width, output = (
        fields.take("hidden_size", int, 768),
        fields.take("vision_output_dim", int, 7680),
    )
    # Two more names of the adapter's width, which must agree with it.
    fields.require("projector_input_dim", output)
    fields.require("projector_output_dim", output)
    factor = _read_shuffle(fields)
    mlp = fields.take("intermediate_size", int, 5632)
    if mlp != width * factor**2:
        fields.problems.append(
            f"intermediate_size={mlp} is not hidden_size={width} / pixel_shuffle_ratio ** 2"
        )
    rope = read_rope(fields)
    if rope["rope.scaling"] is not None:
        fields.problems.append(f"RoPE scaling of images is not supported: {rope['rope.scaling']}")
    return fields.build(
        VisionConfig,
        image_size=fields.take("image_size", int, 448),
        patch_size=fields.take("patch_size", int, 14),
        num_channels=fields.take("num_channels", int, 3),
        embed_dim=width,
        num_layers=fields.take("num_hidden_layers", int, 34),
        num_heads=fields.take("num_attention_heads", int, 16),
        mlp_dim=mlp,
        output_dim=output,
        shuffle=factor,
        norm_eps=NORM_EPS,
        rope_theta=rope["rope.theta"],
        image_token=image_token,
    )


def _read_shuffle(fields: Fields) -> int:
    """Reads how many patches per side are merged: the inverse of `pixel_shuffle_ratio`."""
    ratio = fields.take("pixel_shuffle_ratio", float, 0.5)
    factor = max(1, round(1 / ratio)) if ratio > 0 else 1
    if abs(ratio * factor - 1) > 1e-6:
        fields.problems.append(f"pixel_shuffle_ratio={ratio} is not 1 / a whole number")
    return factor


def unsupported_by_hf_vision(vision: VisionConfig) -> dict[str, bool]:
    """Flags values of the encoder that a `vision_config` does not support."""
    width = vision.embed_dim * vision.shuffle**2
    return {
        f"vision.mlp_dim={vision.mlp_dim} other than embed_dim * shuffle ** 2 = {width}": (
            vision.mlp_dim != width
        ),
        "vision.image_token=None": vision.image_token is None,
        f"vision.norm_eps={vision.norm_eps}": vision.norm_eps != NORM_EPS,
    }


def write_hf_vision(config: DecoderConfig, vision: VisionConfig, base: Json) -> Json:
    """Writes the fields of `read_hf_vision`."""
    kept = {k: v for k, v in base.items() if k not in ("rope_parameters", "dtype")}
    return {
        **kept,
        "model_type": "llama4_vision_model",
        "hidden_act": "gelu",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": vision.num_channels,
        "hidden_size": vision.embed_dim,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "intermediate_size": vision.mlp_dim,
        "vision_output_dim": vision.output_dim,
        "projector_input_dim": vision.output_dim,
        "projector_output_dim": vision.output_dim,
        "pixel_shuffle_ratio": 1 / vision.shuffle,
        "norm_eps": vision.norm_eps,
        "rope_theta": vision.rope_theta,
        "torch_dtype": config.numerics.param_dtype,
    }


def read_meta_vision(fields: Fields) -> VisionConfig | None:
    """Reads the encoder from `vision_args`, or returns None if there are none."""
    if fields.take("vision_args", dict, None) is None:
        return None
    has_token = fields.take("vocab_size", int, -1) > IMAGE_TOKEN
    with fields.part("vision_args") as args:
        width, ratio = args.take("dim", int), args.take("mlp_ratio", float)
        image, patch = (_read_side(args, name) for name in ("image_size", "patch_size"))
        return args.build(
            VisionConfig,
            image_size=image,
            patch_size=patch,
            embed_dim=width,
            num_layers=args.take("n_layers", int),
            num_heads=args.take("n_heads", int),
            mlp_dim=int(ratio * width),
            output_dim=args.take("output_dim", int),
            shuffle=_read_shuffle(args),
            norm_eps=NORM_EPS,
            image_token=IMAGE_TOKEN if has_token else None,
        )


def _read_side(fields: Fields, name: str) -> int:
    with fields.part(name) as size:
        height, width = size.take("height", int), size.take("width", int)
        if height != width:
            size.problems.append(
                f"height={height}, width={width} is not supported, only equal sides"
            )
    return height


def unsupported_by_meta_vision(config: DecoderConfig) -> dict[str, bool]:
    """Flags values of the encoder that `vision_args` does not support."""
    vision = config.vision
    if vision is None:
        return {}
    token = IMAGE_TOKEN if config.vocab_size > IMAGE_TOKEN else None
    constants = {"num_channels": 3, "norm_eps": NORM_EPS, "rope_theta": 10000.0}
    return {
        f"vision.{name}={getattr(vision, name)}": getattr(vision, name) != value
        for name, value in {**constants, "image_token": token}.items()
    }


def write_meta_vision(vision: VisionConfig | None, base: Json) -> Json | None:
    """Writes the `vision_args` over those of `base`; None if there is no encoder."""
    if vision is None:
        return None
    ratio = base.get("mlp_ratio", vision.mlp_dim / vision.embed_dim)
    if int(ratio * vision.embed_dim) != vision.mlp_dim:
        ratio = (vision.mlp_dim + 0.5) / vision.embed_dim  # truncates to mlp_dim despite rounding
    return {
        **base,
        "image_size": {"height": vision.image_size, "width": vision.image_size},
        "patch_size": {"height": vision.patch_size, "width": vision.patch_size},
        "dim": vision.embed_dim,
        "n_layers": vision.num_layers,
        "n_heads": vision.num_heads,
        "mlp_ratio": ratio,
        "output_dim": vision.output_dim,
        "pixel_shuffle_ratio": 1 / vision.shuffle,
    }
