"""State dicts of the official code and of other projects, with random numbers."""

import json

import torch

from . import golden_cases as golden
from . import peer_cases as peers
from .conftest import VARIANTS


def keys(name):
    if name != "official":
        return peers.keys(name)
    files = {v: golden.GOLDEN / f"state_dict_{v}.json" for v in VARIANTS}
    return {variant: json.loads(path.read_text()) for variant, path in files.items()}


def random(shapes, seed=0):
    """Different numbers in each tensor, but for copies of heads and heads that are shared."""
    generator, state = torch.Generator().manual_seed(seed), {}
    copies = "transformer.decoder.", "model.decoder."
    for key in sorted(shapes, key=lambda key: key.startswith(copies)):
        owner = key
        for begin in copies:
            owner = owner.removeprefix(begin) if "_embed." in key else owner
        value = state[owner] if owner in state else torch.randn(shapes[key], generator=generator)
        state[key] = value
    return state


def official(variant, seed=0):
    state = random(keys("official")[variant], seed)
    if variant not in ("refine", "two_stage"):
        for key in state:
            if "_embed.1." in key:
                state[key] = state[key.replace("_embed.1.", "_embed.0.")]
    return state


def same(a, b):
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
