"""Where the layers of the transformer drop something, and that they do in training only."""

from torch import nn
from torch.testing import assert_close

from .modeling_cases import layer_norm, linear
from .test_transformer import MASK, decoder_inputs, decoder_layer, encoder_inputs, encoder_layer


def only(layer, name):
    """Drop everything at one place, nothing elsewhere."""
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    layer.get_submodule(name).p = 1.0
    return layer.train()


def test_encoder_layer_dropout():
    """Parity E36: three places, each found by dropping everything there."""
    layer = encoder_layer(0.1)
    assert [m.p for m in layer.modules() if isinstance(m, nn.Dropout)] == [0.1] * 3
    inputs = encoder_inputs()
    src = inputs[0]
    no_attention = layer_norm(layer.norm1, src)
    hidden = linear(layer.linear1, no_attention).clamp(min=0)
    expected = layer_norm(layer.norm2, no_attention + linear(layer.linear2, hidden))
    assert_close(only(layer, "dropout1")(*inputs), expected)
    nn.init.zeros_(layer.self_attn.output_proj.weight)  # attention without effect
    nn.init.zeros_(layer.self_attn.output_proj.bias)
    no_hidden = layer_norm(layer.norm2, no_attention + layer.linear2.bias)
    assert_close(only(layer, "dropout2")(*inputs), no_hidden)
    assert_close(only(layer, "dropout3")(*inputs), layer_norm(layer.norm2, no_attention))


def test_decoder_layer_dropout():
    """Parity E36: four places and the weights of self-attention."""
    layer = decoder_layer(0.1)
    assert [m.p for m in layer.modules() if isinstance(m, nn.Dropout)] == [0.1] * 4
    assert layer.self_attn.dropout == 0.1
    layer.self_attn.dropout = 0.0
    query, pos, reference, memory = inputs = decoder_inputs()

    def rest(query, cross=True, hidden=True, forward=True):
        if cross:
            query = query + layer.cross_attn(
                layer_norm(layer.norm2, queried) + pos, reference, memory.tokens,
                memory.spatial_shapes, MASK,
            )  # fmt: skip
        query = layer_norm(layer.norm1, query)
        if forward:
            inner = linear(layer.linear1, query).clamp(min=0) * hidden
            return layer_norm(layer.norm3, query + linear(layer.linear2, inner))
        return layer_norm(layer.norm3, query)

    queried = query
    assert_close(only(layer, "dropout2")(*inputs), rest(layer_norm(layer.norm2, query)))
    queried = query + layer.self_attn(query + pos, query + pos, query)[0]
    attended = layer_norm(layer.norm2, queried)
    assert_close(only(layer, "dropout1")(*inputs), rest(attended, cross=False))
    assert_close(only(layer, "dropout3")(*inputs), rest(attended, hidden=False))
    assert_close(only(layer, "dropout4")(*inputs), rest(attended, forward=False))


def test_dropout_only_in_training():
    """Parity E36: random in training, none in evaluation."""
    layer = decoder_layer(0.5)
    inputs = decoder_inputs()
    assert (layer.train()(*inputs) - layer(*inputs)).abs().max() > 0.1
    assert_close(layer.eval()(*inputs), decoder_layer(0.0)(*inputs))
