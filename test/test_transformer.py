"""The diffusion transformer: PyTorch's own decoder, counts by hand, and what may see what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_policy_ros.policy.config import TransformerConfig
from diffusion_policy_ros.policy.transformer import (
    causal_mask, DiffusionTransformer, memory_mask,
)
from diffusion_policy_ros.policy.unet import sinusoidal_embedding

ACTION_DIM, CONDITION_DIM, TO, TP = 4, 30, 2, 8
CONDITIONINGS = ('cross_attention', 'adaln_zero')
SMALL = {'n_layers': 2, 'n_heads': 2, 'embed_dim': 16}


def transformer(**config):
    torch.manual_seed(0)
    model = DiffusionTransformer(ACTION_DIM, CONDITION_DIM, TO, TP,
                                 TransformerConfig(**{**SMALL, **config}))
    for parameter in model.parameters():     # so that nothing stays at zero
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs(batch=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, TP, ACTION_DIM, generator=generator).to(dtype),
            torch.randint(100, (batch,), generator=generator),
            torch.randn(batch, TO, CONDITION_DIM, generator=generator).to(dtype))


def noise_of(model, sample, timestep, condition):
    return model(sample, model.embed_step(timestep), model.embed_condition(condition))


def test_masks_by_hand():
    assert causal_mask(3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert memory_mask(4, 3).int().tolist() == [
        [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_number_of_parameters_by_hand():
    """Eight layers, four heads, 256 wide, over observations of 68 numbers."""
    e = 256

    def linear(n_in, n_out):
        return n_in * n_out + n_out

    attention = linear(e, e) + linear(e, 2 * e) + linear(e, e)
    mlp = linear(e, 4 * e) + linear(4 * e, e)
    block = 2 * attention + mlp + 3 * 2 * e
    expected = (linear(4, e) + 8 * e + linear(68, e) + 3 * e + mlp + 8 * block + 2 * e
                + linear(e, 4))
    model = DiffusionTransformer(4, 68, 2, 8, TransformerConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 8_976_388


@pytest.mark.parametrize('causal', [True, False])
def test_the_same_as_pytorchs_decoder(causal):
    """nn.TransformerDecoder with these weights, and the memory as the released code makes it."""
    model = transformer(causal=causal)
    e = SMALL['embed_dim']
    layer = nn.TransformerDecoderLayer(e, 2, 4 * e, activation='gelu', batch_first=True,
                                       norm_first=True)
    decoder = nn.TransformerDecoder(layer, 2).eval()
    for theirs, ours in zip(decoder.layers, model.blocks, strict=True):
        for attention, own in ((theirs.self_attn, ours.attention),
                               (theirs.multihead_attn, ours.cross)):
            attention.in_proj_weight.data = torch.cat([own.query.weight, own.key_value.weight])
            attention.in_proj_bias.data = torch.cat([own.query.bias, own.key_value.bias])
            attention.out_proj.load_state_dict(own.out.state_dict())
        theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward[3].state_dict())
        for norm, own in zip((theirs.norm1, theirs.norm2, theirs.norm3), ours.norms, strict=True):
            norm.load_state_dict(own.state_dict())
    sample, timestep, condition = inputs()
    tokens = torch.cat([sinusoidal_embedding(timestep, e)[:, None],
                        model.condition_input(condition)], dim=1) + model.memory_position
    t, s = torch.meshgrid(torch.arange(TP), torch.arange(1 + TO), indexing='ij')
    target_mask = nn.Transformer.generate_square_subsequent_mask(TP) if causal else None
    decoded = decoder(model.input(sample) + model.position, model.memory_mlp(tokens),
                      tgt_mask=target_mask, memory_mask=~(t >= s - 1) if causal else None)
    torch.testing.assert_close(noise_of(model, sample, timestep, condition),
                               model.out(model.norm(decoded)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('conditioning', CONDITIONINGS)
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('changed', [1, 5])
def test_no_step_sees_a_later_one(conditioning, causal, changed):
    model = transformer(conditioning=conditioning, causal=causal)
    sample, timestep, condition = inputs()
    before = noise_of(model, sample, timestep, condition)
    sample[:, changed] += 1
    moved = (noise_of(model, sample, timestep, condition) - before).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [not causal or step >= changed for step in range(TP)]


@pytest.mark.parametrize('causal', [True, False])
def test_a_step_sees_no_later_observation(causal):
    model = transformer(causal=causal)
    sample, timestep, condition = inputs()
    before = noise_of(model, sample, timestep, condition)
    condition[:, 1] += 1
    moved = (noise_of(model, sample, timestep, condition) - before).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [not causal] + [True] * 7


@pytest.mark.parametrize('conditioning', CONDITIONINGS)
def test_the_noise_depends_on_step_and_observation(conditioning):
    model = transformer(conditioning=conditioning)
    sample, timestep, condition = inputs()
    before = noise_of(model, sample, timestep, condition)
    for other in ((sample, (timestep + 50) % 100, condition), (sample, timestep, condition + 1)):
        assert (noise_of(model, *other) - before).abs().amax((1, 2)).min() > 1e-4


def test_adaln_zero_begins_as_the_identity():
    torch.manual_seed(0)
    model = DiffusionTransformer(ACTION_DIM, CONDITION_DIM, TO, TP,
                                 TransformerConfig(**SMALL, conditioning='adaln_zero'))
    sample, timestep, condition = inputs()
    assert torch.count_nonzero(noise_of(model.eval(), sample, timestep, condition)) == 0
    modulation = model.embed_step(timestep) + model.embed_condition(condition)
    tokens, width = torch.randn(3, TP, SMALL['embed_dim']), 6 * SMALL['embed_dim']
    for block, part in zip(model.blocks, modulation.split(width, dim=1)):
        torch.testing.assert_close(block(tokens, None, part), tokens)


@pytest.mark.parametrize('conditioning, expected', [
    ('cross_attention', {'mask', 'memory_mask'}), ('adaln_zero', {'mask'})])
def test_only_what_attends_to_a_memory_has_its_mask(conditioning, expected):
    assert {name for name, _ in transformer(conditioning=conditioning).named_buffers()} == expected


def test_weights_begin_as_mingpts_and_as_dits():
    for conditioning in CONDITIONINGS:
        model = DiffusionTransformer(ACTION_DIM, CONDITION_DIM, TO, TP,
                                     TransformerConfig(n_layers=2, conditioning=conditioning))
        key_value, first = model.blocks[0].attention.key_value, model.blocks[0].feed_forward[0]
        for layer in (key_value, first):
            glorot = (2 / (layer.in_features + layer.out_features)) ** 0.5
            expected = 0.02 if conditioning == 'cross_attention' else glorot
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
            assert torch.count_nonzero(layer.bias) == 0


def test_without_positions_and_mask_steps_are_alike():
    model = transformer(conditioning='adaln_zero', causal=False)
    nn.init.zeros_(model.position)
    sample, timestep, condition = inputs()
    turned = torch.randperm(TP, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        noise_of(model, sample[:, turned], timestep, condition),
        noise_of(model, sample, timestep, condition)[:, turned], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('conditioning', CONDITIONINGS)
def test_gradients_are_those_of_finite_differences(conditioning):
    model = transformer(conditioning=conditioning, n_layers=1, embed_dim=8)
    sample, timestep, condition = inputs(batch=1, dtype=torch.float64)
    step = model.embed_step(timestep).detach().double().requires_grad_()
    model.double()
    assert torch.autograd.gradcheck(
        lambda x, s, c: model(x, s, model.embed_condition(c)),
        (sample.requires_grad_(), step, condition.requires_grad_()))


@pytest.mark.parametrize('conditioning', CONDITIONINGS)
def test_dropout_acts_in_training_alone(conditioning):
    model, values = transformer(conditioning=conditioning), inputs()
    torch.testing.assert_close(noise_of(model, *values), noise_of(model, *values))
    model.train()
    assert not torch.equal(noise_of(model, *values), noise_of(model, *values))
