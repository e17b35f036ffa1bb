from copy import deepcopy
import math

import pytest
import torch
from torch.nn import functional

from diffusion_policy_ros.policy.config import UnetConfig
from diffusion_policy_ros.policy.unet import (
    ConditionalUnet1d,
    ConvBlock,
    FEW,
    ResidualBlock,
    sinusoidal_embedding,
    StepConv,
    StepDoubling,
)

ACTION_DIM, CONDITION_DIM, N_OBS_STEPS = 4, 30, 2
SMALL = UnetConfig(down_dims=(16, 32, 64), n_groups=8, diffusion_step_embed_dim=16)


def unet(config=SMALL):
    torch.manual_seed(0)
    return ConditionalUnet1d(ACTION_DIM, CONDITION_DIM // N_OBS_STEPS, N_OBS_STEPS, config)


def noise_of(model, sample, timestep, condition):
    return model(sample, model.embed_step(timestep), model.embed_condition(condition))


def inputs(batch=3, horizon=8):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, horizon, ACTION_DIM, generator=generator),
            torch.randint(100, (batch,), generator=generator),
            torch.randn(batch, CONDITION_DIM, generator=generator))


def test_sinusoidal_embedding_by_hand():
    found = sinusoidal_embedding(torch.tensor([0, 3]), 6)
    frequencies = [1.0, 0.01, 0.0001]
    expected = [[0, 0, 0, 1, 1, 1], [*(math.sin(3 * f) for f in frequencies),
                                     *(math.cos(3 * f) for f in frequencies)]]
    torch.testing.assert_close(found, torch.tensor(expected))


def conv(n_in, n_out, kernel):
    return n_in * n_out * kernel + n_out


def block(n_in, n_out, condition, kernel=5):
    film = (condition + 1) * 2 * n_out
    norms = 2 * 2 * n_out
    around = conv(n_in, n_out, 1) if n_in != n_out else 0
    return conv(n_in, n_out, kernel) + conv(n_out, n_out, kernel) + norms + film + around


def test_parameter_count_by_hand():
    a, b, c, step = 16, 32, 64, 16
    condition = step + CONDITION_DIM
    blocks = [(ACTION_DIM, a), (a, a), (a, b), (b, b), (b, c), (c, c),      # down
              (c, c), (c, c),                                               # middle
              (2 * c, b), (b, b), (2 * b, a), (a, a)]                       # up
    expected = sum(block(*widths, condition) for widths in blocks)
    expected += (step + 1) * 4 * step + (4 * step + 1) * step               # step's MLP
    expected += conv(a, a, 3) + conv(b, b, 3)                               # shrink
    expected += conv(b, b, 4) + conv(a, a, 4)                               # grow
    expected += conv(a, a, 5) + 2 * a + conv(a, ACTION_DIM, 1)              # last
    assert sum(value.numel() for value in unet().parameters()) == expected


def test_order_of_blocks_and_skips():
    """Spell out Chi et al.'s network of three stages: only the two deeper skips are used."""
    model, (sample, timestep, condition) = unet(), inputs()
    modulation = model.embed_step(timestep) + model.embed_condition(condition)
    film, start = [], 0
    for n in model.film_widths:
        film.append(modulation[:, start:start + 2 * n, None].chunk(2, dim=1))
        start += 2 * n
    x = sample.transpose(1, 2)
    first = model.down[0][1](model.down[0][0](x, *film[0]), *film[1])                   # 8 steps
    second = model.down[1][1](model.down[1][0](model.shrink[0](first), *film[2]), *film[3])
    third = model.down[2][1](model.down[2][0](model.shrink[1](second), *film[4]), *film[5])
    assert (second.shape[2], third.shape[2]) == (4, 2)
    x = model.middle[1](model.middle[0](third, *film[6]), *film[7])
    x = torch.cat([x, third], dim=1)
    x = model.grow[0](model.up[0][1](model.up[0][0](x, *film[8]), *film[9]))            # 4 steps
    x = torch.cat([x, second], dim=1)
    x = model.grow[1](model.up[1][1](model.up[1][0](x, *film[10]), *film[11]))          # 8 steps
    torch.testing.assert_close(model(sample, modulation, torch.zeros_like(modulation)),
                               model.out(model.last(x)).transpose(1, 2))


def test_film_scales_and_shifts_after_the_first_convolution():
    torch.manual_seed(0)
    model, x = ResidualBlock(4, 16, 5, 8), torch.randn(2, 4, 8)
    scale, bias = torch.randn(2, 2, 16, 1)
    expected = model.second(model.first(x) * scale + bias) + model.around(x)
    torch.testing.assert_close(model(x, scale, bias), expected)
    neutral = model(x, torch.ones(2, 16, 1), torch.zeros(2, 16, 1))
    torch.testing.assert_close(neutral, model.second(model.first(x)) + model.around(x))
    constant = model.second(bias.expand(2, 16, 8)) + model.around(x)
    torch.testing.assert_close(model(x, torch.zeros(2, 16, 1), bias), constant)


def test_neutral_film_makes_the_condition_irrelevant():
    model = unet()
    torch.nn.init.zeros_(model.film.weight)
    bias = torch.cat([torch.cat([torch.ones(n), torch.zeros(n)]) for n in model.film_widths])
    model.film.bias.data.copy_(bias)
    sample, _, _ = inputs(batch=2)
    one = noise_of(model, sample, torch.tensor([0, 0]), torch.zeros(2, CONDITION_DIM))
    other = noise_of(model, sample, torch.tensor([99, 5]), torch.randn(2, CONDITION_DIM))
    torch.testing.assert_close(one, other)


def test_the_two_halves_are_one_linear_map_of_both():
    """Chi et al. apply Mish and one linear map to (step, observation), end to end."""
    model, (_, timestep, condition) = unet(), inputs()
    embedded = model.step_mlp(sinusoidal_embedding(timestep, model.step_dim))
    whole = model.film(functional.mish(torch.cat([embedded, condition], dim=1)))
    torch.testing.assert_close(
        model.embed_step(timestep) + model.embed_condition(condition), whole)


@pytest.mark.parametrize('kernel_size', [3, 5, 7])
@pytest.mark.parametrize('length', [1, 2, 4, 8, 16])
def test_convolution_of_every_length_is_conv1d(kernel_size, length):
    torch.manual_seed(0)
    block, x = ConvBlock(16, 32, kernel_size, 8), torch.randn(2, 16, length)
    plain = functional.conv1d(x, block[0].weight, block[0].bias, padding=kernel_size // 2)
    expected = functional.mish(functional.group_norm(plain, 8, block[1].weight, block[1].bias))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    block.eval()
    with torch.inference_mode():
        for n in (2, 2 * FEW):
            torch.testing.assert_close(block(x.repeat(n // 2, 1, 1)),
                                       expected.repeat(n // 2, 1, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('length', [2, 8])
def test_convolution_follows_its_weights(length):
    """Without gradients the matrix is kept: every way of changing weights must renew it."""
    torch.manual_seed(0)
    model, x = StepConv(16, 16, 5).eval(), torch.randn(2, 16, length)

    def check():
        plain = functional.conv1d(x, model.weight, model.bias, padding=2)
        torch.testing.assert_close(model(x), plain, atol=1e-5, rtol=1e-5)

    with torch.inference_mode():
        check()
        check()
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.inference_mode():
        check()
    model.load_state_dict(StepConv(16, 16, 5).state_dict())
    with torch.no_grad():
        check()
        torch._foreach_lerp_(list(model.parameters()), list(StepConv(16, 16, 5).parameters()), 0.5)
        check()
        model.bias.add_(1)
        check()
        whole, x = x, x[:, :, :1]
        check()
        x = whole
        check()
    model.weight = torch.nn.Parameter(torch.randn(16, 16, 5))
    with torch.inference_mode():
        check()
        copy = deepcopy(model)
        copy.weight.zero_()
        torch.testing.assert_close(copy(x), copy.bias[:, None].expand_as(x))
        check()
    model.train()                           # a fused optimiser counts up no version
    with torch.no_grad():
        check()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(x).square().sum().backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        check()


def test_what_is_kept_for_few_samples_is_not_used_for_many():
    """Five live taps of seven over three steps, and a matrix over five steps, are two things."""
    torch.manual_seed(0)
    model = StepConv(16, 16, 7).eval()
    with torch.inference_mode():
        for shape in ((1, 16, 3), (2 * FEW, 16, 5), (1, 16, 3)):
            x = torch.randn(shape)
            plain = functional.conv1d(x, model.weight, model.bias, padding=3)
            torch.testing.assert_close(model(x), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('length', [1, 2, 3, 8])
def test_doubling_is_a_transposed_convolution(length):
    torch.manual_seed(0)
    model, x = StepDoubling(16).eval(), torch.randn(3, 16, length)
    for _ in range(2):
        expected = functional.conv_transpose1d(x, model.weight, model.bias, stride=2, padding=1)
        torch.testing.assert_close(model(x), expected)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
            model.weight.mul_(2.0)


@pytest.mark.parametrize('widths, horizon', [((16,), 3), ((16, 32), 6), ((16, 32, 64), 4),
                                             ((16, 32, 64), 16), ((32, 16, 8, 16), 8)])
def test_output_has_the_samples_shape(widths, horizon):
    model = unet(UnetConfig(down_dims=widths, diffusion_step_embed_dim=16))
    sample, timestep, condition = inputs(horizon=horizon)
    assert noise_of(model, sample, timestep, condition).shape == sample.shape


@pytest.mark.parametrize('horizon', [2, 5, 6, 9])
def test_horizon_that_does_not_halve_is_refused(horizon):
    with pytest.raises(ValueError, match=f'horizon is {horizon}, expected a multiple of 4'):
        noise_of(unet(), *inputs(horizon=horizon))


def test_samples_of_a_batch_are_independent():
    model, batch = unet(), inputs(batch=4)
    with torch.inference_mode():
        alone = torch.cat([noise_of(model, *(value[i:i + 1] for value in batch))
                           for i in range(4)])
        torch.testing.assert_close(noise_of(model, *batch), alone, atol=1e-5, rtol=1e-5)


def test_training_and_inference_are_one_function():
    model, batch = unet(), inputs()
    trained = noise_of(model.train(), *batch)
    assert trained.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(noise_of(model.eval(), *batch), trained, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns():
    model = unet()
    noise_of(model, *inputs()).square().sum().backward()
    assert [name for name, value in model.named_parameters()
            if not value.grad.abs().max() > 1e-8] == []


def test_every_step_of_the_output_sees_every_step_of_the_sample():
    model, (sample, timestep, condition) = unet(), inputs(batch=1)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: noise_of(model, x, timestep, condition), sample)
    influence = jacobian[0, :, :, 0].abs().sum(dim=(1, 3))
    assert influence.shape == (8, 8)
    assert influence.min() > 0
