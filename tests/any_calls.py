"""A PyTorch module whose block runs three times, and the same as a JAX function with taps."""

from collections.abc import Callable
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import torch

from jaxllm.interop import Rule
from jaxllm.interop.parity import JaxFunction, tap

VOCAB, WIDTH, ROUNDS = 23, 16, 3
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 24))
LAYERS = ("layers", "logits")


class Repeated(torch.nn.Module):
    """A module of no known family, which adds the output of one block several times."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Embedding(VOCAB, WIDTH)
        self.block = torch.nn.Linear(WIDTH, WIDTH)
        self.out = torch.nn.Linear(WIDTH, VOCAB, bias=False)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, tokens):
        x = self.table(tokens)
        for _ in range(ROUNDS):
            x = x + torch.tanh(self.block(x))
        return self.out(x)


def function(change: Callable = lambda round_, y_BTD: y_BTD, rounds: int = ROUNDS) -> JaxFunction:
    """The function of the module, which changes the output of the block in each round."""

    def apply(params, tokens_BT):
        x_BTD = params["table"][tokens_BT]
        for round_ in range(ROUNDS):
            y_BTD = change(round_, x_BTD @ params["block"] + params["bias"])
            y_BTD = tap("block", y_BTD) if round_ < rounds else y_BTD
            x_BTD = x_BTD + jnp.tanh(y_BTD)
        return x_BTD @ params["out"]

    state = {name: tensor.numpy().copy() for name, tensor in Repeated().state_dict().items()}
    params = {
        "table": jnp.asarray(state["table.weight"]),
        "block": jnp.asarray(state["block.weight"].T),
        "bias": jnp.asarray(state["block.bias"]),
        "out": jnp.asarray(state["out.weight"].T),
    }
    rules = SimpleNamespace(
        rules=[
            Rule("table.weight : V D", "table : V D"),
            Rule("block.weight : E D", "block : D E"),
            Rule("block.bias : E", "bias : E"),
            Rule("out.weight : V D", "out : D V"),
        ]
    )
    return JaxFunction(apply, params, rules, taps=[Rule("block : B T E", "block : B T E")])
