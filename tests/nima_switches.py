"""The switches of nima's layers: every value of each, and every position with either norm."""

LAYERS = {"d_model": 48, "n_heads": 6, "d_ff": 56, "max_seq_len": 320}
SWITCHES = (
    {},
    {"norm": "pre", "feed_forward": "swiglu", "position": "rope"},
    {"feed_forward": "glu", "position": "alibi"},
    {"position": "relative"},
    {"norm": "pre", "feed_forward": "glu", "position": "relative", "dropout": 0.0},
    {"norm": "pre", "position": "alibi", "init": "normal"},
    {"feed_forward": "swiglu", "position": "rope", "dropout": 0.3},
    {"norm": "pre"},
)


def named(model_type: str, sizes: dict, *switches: dict) -> dict[str, dict]:
    """A case for each set of switches, named by the values that they have."""
    values = ["-".join(map(str, own.values())) for own in switches]
    names = [f"{model_type}/{own}" if own else model_type for own in values]
    return {name: {**sizes, **own} for name, own in zip(names, switches, strict=True)}
