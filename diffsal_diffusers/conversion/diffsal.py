"""The checkpoints that the authors of DiffSal released, as pipelines."""

from os import PathLike

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..encoders import MViTv2Encoder, VGGishEncoder, VideoEncoder
from ..errors import InputError
from ..models import ReleasedSaliencyUNet
from ..pipelines import DiffSalPipeline
from ..processing import SaliencyProcessor
from ..schedulers import create_scheduler
from .backbones import VGGISH_UNUSED, mvit_sources, vggish_sources
from .checkpoint import Names, Source, read_checkpoint, sources_by_name, take_tensors

DECODER = "decoder_net.invpt_decoder"
BLOCK = rf"{DECODER}.mid_stages.\1.blocks.0"
UNET_NAMES: Names = (
    (r"audio_transformer\.norm1\.", "spatiotemp_net.transformer.layers.0.0.norm."),
    (r"audio_transformer\.to_qkv\.", "spatiotemp_net.transformer.layers.0.0.to_qkv."),
    (r"audio_transformer\.to_out\.", "spatiotemp_net.transformer.layers.0.0.to_out.0."),
    (r"audio_transformer\.norm2\.", "spatiotemp_net.transformer.layers.0.1.net.0."),
    (r"audio_transformer\.mlp\.0\.", "spatiotemp_net.transformer.layers.0.1.net.1."),
    (r"audio_transformer\.mlp\.2\.", "spatiotemp_net.transformer.layers.0.1.net.4."),
    (r"audio_transformer\.norm_out\.", "spatiotemp_net.transformer.norm."),
    (r"noise_encoder\.time_embedding\.linear_1\.", "decoder_net.temb.dense.0."),
    (r"noise_encoder\.time_embedding\.linear_2\.", "decoder_net.temb.dense.1."),
    (r"noise_encoder\.conv_in\.", "decoder_net.conv_in."),
    (r"noise_encoder\.conv_down\.", "decoder_net.down1.conv."),
    (r"noise_encoder\.downsamples\.(\d)\.conv\.", r"decoder_net.res_encoder.\1.1.conv."),
    (r"noise_encoder\.resnets\.(\d)\.time_emb_proj\.", r"decoder_net.res_encoder.\1.0.temb_proj."),
    (r"noise_encoder\.resnets\.(\d)\.conv_shortcut\.", r"decoder_net.res_encoder.\1.0.nin_shortcut."),
    (r"noise_encoder\.resnets\.(\d)\.", r"decoder_net.res_encoder.\1.0."),
    (r"stages\.(\d)\.norm1\.", f"{BLOCK}.norm."),
    (r"stages\.(\d)\.norm2\.", f"{BLOCK}.norm2."),
    (r"stages\.(\d)\.mlp\.0\.", f"{BLOCK}.mlp.fc1."),
    (r"stages\.(\d)\.mlp\.2\.", f"{BLOCK}.mlp.fc2."),
    (r"stages\.(\d)\.audio_proj\.", f"{BLOCK}.align_conv."),
    (r"stages\.(\d)\.attention\.conv_([qkv])\.", rf"{BLOCK}.attn.conv_proj_\2.conv."),
    (r"stages\.(\d)\.attention\.norm_([qkv])\.", rf"{BLOCK}.attn.conv_proj_\2.bn."),
    (r"stages\.(\d)\.attention\.to_([qkv])\.", rf"{BLOCK}.attn.proj_\2."),
    (r"stages\.(\d)\.attention\.to_out\.", f"{BLOCK}.attn.proj."),
    (r"stages\.(\d)\.norm_out\.", rf"{DECODER}.norm_mts.\1."),
    (r"stages\.(\d)\.temporal_conv\.", rf"{DECODER}.redu_chan_up.\1.proj.0."),
    (r"conv_out\.", "decoder_net.logits.linear_pred."),
)
# The authors' program computes something with these and throws it away, or nothing at all.
UNUSED = (
    r"fc\.\d\.(weight|bias)",
    r"spatiotemp_net\.pos_embedding",
    r"spatiotemp_net\.to_patch_embedding\.\d\.(weight|bias)",
    *(rf"audio_net\.{pattern}" for pattern in VGGISH_UNUSED),
    r"decoder_net\.invpt_decoder\.[\w.]+\.num_batches_tracked",
)
# And these, without sound, change no map.
UNUSED_WITHOUT_SOUND = (
    r"decoder_net\.(temb|conv_in|down1|res_encoder)\.([\w.]+\.)?(weight|bias)",
    r"decoder_net\.invpt_decoder\.mid_stages\.\d\.blocks\.0\.align_conv\.(weight|bias)",
)
BATCH_NORM_EPS = 1e-5
NUM_INFERENCE_STEPS = 4  # the paper's; the release's settings say 1
# Of frames in [0, 255], on the audio-visual sets. On DHF1K it is ImageNet's, which video encoders have by default.
SOUND_SETS_MEAN, SOUND_SETS_STD = (114.7748, 107.7354, 99.475), (38.7568578, 37.88248729, 40.02898126)


def convert_diffsal(file: str | PathLike, video_only: bool = False) -> tuple[DiffSalPipeline, list[str]]:
    """The pipeline of a checkpoint that the authors of DiffSal released.

    Args:
        file: a dictionary with `state_dict`.
        video_only: whether it is the network without sound.

    Returns:
        the pipeline, see [`released_pipeline`], and the names of the file's tensors that it has no use for.

    Raises:
        InputError: the file is damaged, or not that.
    """
    tensors = read_checkpoint(file)
    if any(name.startswith("decoder_net.") for name in tensors):
        with_sound = any(name.startswith("audio_net.") for name in tensors)
        if with_sound and video_only:
            raise InputError(f"{file}: holds an audio encoder, so that it is not the video-only checkpoint")
        if not with_sound and not video_only:
            raise InputError(f"{file}: holds no audio encoder; if it is the video-only checkpoint, add --video-only")
    pipe = released_pipeline(video_only)
    networks = [
        (pipe.video_encoder, mvit_sources(pipe.video_encoder, "visual_net.")),
        (pipe.unet, unet_sources(pipe.unet)),
    ]
    unused = UNUSED_WITHOUT_SOUND
    if not video_only:
        networks.append((pipe.audio_encoder, vggish_sources(pipe.audio_encoder, "audio_net.")))
        unused = ()
    what = f"DiffSal's released {'video-only' if video_only else 'audio-visual'} checkpoint"
    return pipe, take_tensors(tensors, networks, (*UNUSED, *unused), file, what)


def released_pipeline(video_only: bool = False) -> DiffSalPipeline:
    """The release's networks, untrained, with its sampler (DDIM with leading spacing) at the paper's 4 steps, its
    normalisation, and its slices of sound.

    Args:
        video_only: whether it is the network without sound.
    """
    video_encoder = MViTv2Encoder(norms_in_path=True)
    mean, std = VideoEncoder.image_mean, VideoEncoder.image_std
    if not video_only:
        mean, std = (tuple(value / 255 for value in values) for values in (SOUND_SETS_MEAN, SOUND_SETS_STD))
    return DiffSalPipeline(
        unet=ReleasedSaliencyUNet(audio_channels=None if video_only else 512).eval(),
        video_encoder=video_encoder.eval(),
        audio_encoder=None if video_only else VGGishEncoder().eval(),
        # Its steps begin before the schedule's end.
        scheduler=create_scheduler("ddim", {**create_scheduler("ddim").config, "timestep_spacing": "leading"}),
        processor=SaliencyProcessor(
            frame_size=(224, 384),
            num_frames=16,
            target_frame=8,
            image_mean=mean,
            image_std=std,
            audio_slices=9,
            audio_size=(112, 192),
            audio_alignment="released",
        ),
        default_num_inference_steps=NUM_INFERENCE_STEPS,
    )


def unet_sources(unet: ReleasedSaliencyUNet) -> dict[str, Source]:
    """What the network's tensors are made of."""
    sources = sources_by_name(unet, UNET_NAMES)
    for name in sources:
        ((published, shape),) = sources[name].shapes.items()
        if name.endswith(".audio_proj.weight"):  # a 1x1 convolution
            sources[name] = Source({published: (*shape, 1, 1)}, lambda weight: weight[:, :, 0, 0])
        elif name.endswith(".conv_q.weight"):  # of one slice alone, the outer taps in time see padding only
            sources[name] = Source({published: (*shape[:2], 3, *shape[2:])}, lambda weight: weight[:, :, 1])
        elif name.endswith((".conv_k.weight", ".conv_v.weight")):
            sources[name] = Source({published: (*shape[:2], 1, *shape[2:])}, lambda weight: weight[:, :, 0])

    # Convolutions that do the work of the batch normalisations after them, too.
    folded = {"conv_head": (f"{DECODER}.mt_proj.0", f"{DECODER}.mt_proj.1")}
    for i in range(1, len(unet.stages)):
        layers = f"{DECODER}.mid_stages.{i}.patch_embed.0.proj"
        folded |= {f"stages.{i}.conv1": (f"{layers}.1", f"{layers}.2")}
        folded |= {f"stages.{i}.conv2": (f"{layers}.4", f"{layers}.5")}
    for name, (conv, norm) in folded.items():
        layer = unet.get_submodule(name)
        shapes = {f"{conv}.weight": tuple(layer.weight.shape)}
        kinds = ("running_mean", "running_var", "weight", "bias")
        shapes |= {f"{norm}.{kind}": tuple(layer.bias.shape) for kind in kinds}
        if name == "conv_head":  # the others have none
            shapes |= {f"{conv}.bias": tuple(layer.bias.shape)}
        sources[f"{name}.weight"] = Source(shapes, lambda *tensors: fold(*tensors)[0])
        sources[f"{name}.bias"] = Source(shapes, lambda *tensors: fold(*tensors)[1])
    return sources


def fold(
    weight: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution with the batch normalisation after it."""
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, BATCH_NORM_EPS, norm_weight, norm_bias)
    return folded[0].detach(), folded[1].detach()
