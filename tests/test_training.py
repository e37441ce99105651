"""The training objective: it equals the equation, it learns, and after training more steps are no no-op."""

import pytest
import torch
from diffsal_diffusers.schedulers import create_scheduler
from diffsal_diffusers.training import denoising_loss
from reference_weights import draw_weights
from stand_ins import TINY_UNET

from diffsal_diffusers import SaliencyUNet

SIZE = (32, 64)


def scenes(number: int, seed: int):
    """Two squares in the picture, one of them sounding: saliency is a blob on either, more on the one that sounds."""
    g = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 8, (number, 2), generator=g)
    loud = torch.randint(0, 2, (number,), generator=g)
    x = (torch.arange(SIZE[1]) + 0.5) / SIZE[1]
    blobs = torch.exp(-(((x - (places[..., None] + 0.5) / 8) / 0.06) ** 2))  # b 2 w
    weights = torch.stack([1 - 0.6 * loud, 0.4 + 0.6 * loud], dim=1)[..., None]
    saliency = (blobs * weights).amax(dim=1)[:, None, None].expand(-1, 1, *SIZE).contiguous()
    video = []
    for stride in (4, 8, 16, 32):
        small = torch.nn.functional.adaptive_avg_pool1d(blobs, SIZE[1] // stride)  # b 2 w
        video.append(small[:, :, None, None].expand(-1, -1, 8, SIZE[0] // stride, -1).contiguous())
    audio = torch.nn.functional.one_hot(loud, 2).float()[:, :, None, None, None].expand(-1, -1, 9, 2, 2).contiguous()
    return saliency, video, audio


def tiny_unet() -> SaliencyUNet:
    torch.manual_seed(0)
    return SaliencyUNet(**TINY_UNET, video_channels=(2, 2, 2, 2), audio_channels=2)


@pytest.fixture(scope="module")
def trained():
    """A small network after 150 steps, with the loss of each, modalities dropped at random."""
    unet, scheduler = tiny_unet().train(), create_scheduler()
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(1)
    losses = []
    for step in range(150):
        saliency, video, audio = scenes(8, seed=step)
        masks = torch.rand(2, 8, generator=g) > 0.15
        loss = denoising_loss(unet, scheduler, saliency, video, audio, masks[0], masks[1], generator=g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return unet.eval(), losses


def test_loss_is_equation_10():
    unet, scheduler = draw_weights(tiny_unet()), create_scheduler()
    saliency, video, audio = scenes(3, seed=0)
    loss = denoising_loss(unet, scheduler, saliency, video, audio, generator=torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    timesteps = torch.randint(1000, (3,), generator=g)
    noise = torch.randn(saliency.shape, generator=g)
    assert len(set(timesteps.tolist())) == 3  # one timestep a sample
    total = 0.0
    for i, t in enumerate(timesteps):
        alpha = scheduler.alphas_cumprod[t]
        noisy = alpha.sqrt() * (2 * saliency[i] - 1) + (1 - alpha).sqrt() * noise[i]
        prediction = unet(noisy[None], t, [v[i : i + 1] for v in video], audio[i : i + 1]).sample[0]
        total += ((prediction + 1) / 2 - saliency[i]).square().mean().item() / 3
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_it_learns(trained):
    _, losses = trained
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@torch.no_grad()
def test_after_training_more_steps_are_no_no_op(trained):
    unet, _ = trained
    saliency, video, audio = scenes(4, seed=1000)
    scheduler = create_scheduler()
    for sound in (audio, None):
        maps = {}
        for steps in (1, 4):
            scheduler.set_timesteps(steps)
            sample = torch.randn(saliency.shape, generator=torch.Generator().manual_seed(0))
            for t in scheduler.timesteps:
                sample = scheduler.step(unet(sample, t, video, sound).sample, t, sample).prev_sample
            maps[steps] = sample
        difference = (maps[1] - maps[4]).square().mean().sqrt() / maps[1].std()
        assert difference > 0.02


@torch.no_grad()
def test_training_uses_the_sound(trained):
    """On held-out scenes the map is better with the right sound than without, and with another's sound it is worse."""
    unet, _ = trained
    saliency, video, audio = scenes(64, seed=2000)
    noise = torch.randn(saliency.shape, generator=torch.Generator().manual_seed(0))
    truth = 2 * saliency - 1

    def error(sound):
        return (unet(noise, 999, video, sound).sample - truth).square().mean().item()

    wrong = audio.flip(1)
    assert error(audio) < error(None) < error(wrong)
