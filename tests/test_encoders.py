"""Encoders state their shapes, equal the published networks, and load and save completely."""

import importlib
import json
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from reference_weights import draw_weights
from safetensors.torch import save_file

from diffsal_diffusers.encoders import (
    AudioEncoder,
    MViTv2Encoder,
    S3DEncoder,
    Swin3DEncoder,
    TimmVideoEncoder,
    VGGishEncoder,
    VideoEncoder,
    create_audio_encoder,
    create_video_encoder,
    list_audio_encoders,
    list_video_encoders,
    multiscale,
    register_audio_encoder,
    register_video_encoder,
    registry,
)
from diffsal_diffusers.errors import InputError

# name, class, parameters in millions
VIDEO_ENCODERS = [
    ("mvit_v2_s", MViTv2Encoder, 34.23),
    ("swin3d_t", Swin3DEncoder, 27.85),
    ("swin3d_s", Swin3DEncoder, 49.51),
    ("swin3d_b", Swin3DEncoder, 87.64),
    ("s3d", S3DEncoder, 7.91),
    ("timm/efficientnet_lite0", TimmVideoEncoder, 2.96),
    ("timm/tf_efficientnet_lite0", TimmVideoEncoder, 2.96),
    ("timm/mambaout_femto", TimmVideoEncoder, 5.82),  # channels last
]
ONE_OF_EACH = ["mvit_v2_s", "swin3d_t", "s3d", "timm/efficientnet_lite0"]
AUDIO_ENCODERS = [("vggish", 512, (112, 192), (7, 12), 4.50), ("log_mel_cnn", 128, (64, 64), (4, 4), 0.10)]


def seeded(create, name, **config):
    torch.manual_seed(0)
    return create(name, **config).eval()


def shapes(features):
    return [tuple(feature.shape) for feature in features]


def millions(model):
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


def settings(encoder):
    """The configuration without diffusers' own entries, and as JSON keeps it."""
    values = {key: value for key, value in encoder.config.items() if not key.startswith("_")}
    return json.loads(json.dumps(values))


def assert_equal_states(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_VIDEO_ENCODERS", dict(registry._VIDEO_ENCODERS))
    monkeypatch.setattr(registry, "_AUDIO_ENCODERS", dict(registry._AUDIO_ENCODERS))


# Shapes


@pytest.mark.parametrize(("name", "encoder_class", "parameters"), VIDEO_ENCODERS)
@torch.no_grad()
def test_feature_info_is_what_comes_out(name, encoder_class, parameters):
    encoder = seeded(create_video_encoder, name, num_frames=8)
    assert type(encoder) is encoder_class and millions(encoder) == parameters
    assert [info.stride for info in encoder.feature_info] == [4, 8, 16, 32]
    features = encoder(torch.randn(2, 3, 8, 64, 96)).features
    assert shapes(features) == [(2, c, t, 64 // s, 96 // s) for c, s, t in encoder.feature_info]


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("size", [(6, 96, 32), (16, 32, 64), (26, 32, 32)])
@torch.no_grad()
def test_other_sizes_and_clip_lengths(name, size):
    encoder = seeded(create_video_encoder, name, num_frames=size[0])
    features = encoder(torch.randn(1, 3, *size)).features
    assert shapes(features) == [(1, c, t, size[1] // s, size[2] // s) for c, s, t in encoder.feature_info]


@torch.no_grad()
def test_full_size_of_the_light_encoder():
    encoder = seeded(create_video_encoder, "timm/efficientnet_lite0")
    features = encoder(torch.randn(1, 3, 16, 224, 384)).features
    assert shapes(features) == [(1, 24, 8, 56, 96), (1, 40, 8, 28, 48), (1, 112, 8, 14, 24), (1, 320, 8, 7, 12)]


def test_feature_info_of_the_paper_and_of_s3d():
    assert create_video_encoder("mvit_v2_s").feature_info == [(96, 4, 8), (192, 8, 8), (384, 16, 8), (768, 32, 8)]
    assert create_video_encoder("s3d").feature_info == [(192, 4, 8), (480, 8, 8), (832, 16, 4), (1024, 32, 2)]


@pytest.mark.parametrize(("name", "channels", "input_size", "output_size", "parameters"), AUDIO_ENCODERS)
@torch.no_grad()
def test_audio_shapes(name, channels, input_size, output_size, parameters):
    encoder = seeded(create_audio_encoder, name)
    assert encoder.feature_info == [(channels, 16, 9)]
    assert (encoder.input_size, millions(encoder)) == (input_size, parameters)
    log_mel = torch.randn(2, 1, 3, *input_size)
    (feature,) = encoder(log_mel).features
    assert feature.shape == (2, channels, 3, *output_size)
    torch.testing.assert_close(feature[1:, :, 2:], encoder(log_mel[1:, :, 2:]).features[0])  # slice by slice


@torch.no_grad()
def test_configured_log_mel_cnn():
    encoder = create_audio_encoder("log_mel_cnn", channels=64, input_size=(96, 32))
    assert (encoder.feature_info, encoder.input_size) == ([(64, 16, 9)], (96, 32))
    assert encoder(torch.randn(1, 1, 2, 96, 32)).features[0].shape == (1, 64, 2, 6, 2)


@pytest.mark.parametrize(
    ("create", "name", "shape"),
    [(create_video_encoder, name, (1, 3, 8, 64, 100)) for name in ONE_OF_EACH]
    + [(create_video_encoder, name, (1, 8, 3, 64, 96)) for name in ONE_OF_EACH]
    + [(create_video_encoder, "s3d", (1, 3, 4, 64, 96))]
    + [(create_audio_encoder, name, (1, 1, 9, 100, 64)) for name in ("vggish", "log_mel_cnn")]
    + [(create_audio_encoder, name, (1, 9, 1, 64, 64)) for name in ("vggish", "log_mel_cnn")],
)
def test_wrong_input_is_refused(create, name, shape):
    with pytest.raises(InputError, match=str(shape[2]) if name == "s3d" and shape[2] < 5 else r"got \("):
        create(name)(torch.zeros(shape))


# Equality with the published networks


@pytest.mark.parametrize("scores_at_once", [1, 5000, 2**21])
@torch.no_grad()
def test_mvit_equals_torchvision(scores_at_once, monkeypatch):
    """With the attention over any number of queries at a time, and with gradients, where torchvision's own is used."""
    monkeypatch.setattr(multiscale, "SCORES_AT_ONCE", scores_at_once)
    encoder = seeded(create_video_encoder, "mvit_v2_s").double()
    for norm in encoder.norms:
        torch.nn.init.normal_(norm.weight)
    for block in encoder.blocks:
        for table in (block.attn.rel_pos_t, block.attn.rel_pos_h, block.attn.rel_pos_w):
            torch.nn.init.normal_(table, std=0.3)
    published = torchvision.models.video.mvit_v2_s().eval().double()
    published.load_state_dict(encoder.state_dict(), strict=False)
    video = torch.randn(2, 3, *((4, 64, 96) if scores_at_once > 1 else (2, 32, 32)), dtype=torch.float64)
    features = encoder(video).features
    x = published.conv_proj(video)
    size = tuple(x.shape[2:])
    x = published.pos_encoding(x.flatten(2).transpose(1, 2))  # its forward takes 16 frames of 224x224 only
    expected = []
    for index, block in enumerate(published.blocks):
        x, size = block(x, size)
        if index in encoder.stage_ends:
            expected.append(encoder.norms[len(expected)](x[:, 1:]))
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature.flatten(2), other.transpose(1, 2))
    with torch.enable_grad():
        with_gradients = encoder(video).features
    for feature, other in zip(features, with_gradients, strict=True):
        torch.testing.assert_close(feature, other)


@torch.no_grad()
def test_swin_equals_torchvision():
    encoder = seeded(create_video_encoder, "swin3d_t")
    published = torchvision.models.video.swin3d_t().eval()
    published.load_state_dict(encoder.state_dict(), strict=False)
    outputs = []
    for index in (0, 2, 4, 6):
        published.features[index].register_forward_hook(lambda _, __, out: outputs.append(out))
    video = torch.randn(1, 3, 16, 64, 96)
    published(video)
    for feature, norm, output in zip(encoder(video).features, encoder.norms, outputs, strict=True):
        torch.testing.assert_close(feature, norm(output).movedim(-1, 1))


@torch.no_grad()
def test_s3d_equals_torchvision():
    encoder = seeded(create_video_encoder, "s3d")
    published = torchvision.models.video.s3d().eval()
    published.load_state_dict(encoder.state_dict(), strict=False)
    video = torch.randn(1, 3, 16, 64, 96)
    features = encoder(video).features
    for feature, layers in zip(features, (4, 7, 13, 16), strict=True):
        torch.testing.assert_close(feature, published.features[:layers](video))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "convnext_atto"])
@torch.no_grad()
def test_per_frame_encoder_on_overlapping_clips(name):
    encoder = seeded(create_video_encoder, f"timm/{name}")
    for mix in encoder.temporal_mix:
        torch.nn.init.normal_(mix.weight)
    video = torch.randn(2, 3, 12, 64, 64)
    frames = [
        f.unflatten(0, (2, 12)).transpose(1, 2) for f in encoder.encode_frames(video.transpose(1, 2).flatten(0, 1))
    ]
    for start in (0, 1, 4):
        window = slice(start, start + 8)
        features = encoder.mix_frames([f[:, :, window] for f in frames]).features
        torch.testing.assert_close(features, encoder(video[:, :, window]).features)


@torch.no_grad()
def test_temporal_mix_starts_as_an_average():
    encoder = seeded(create_video_encoder, "timm/efficientnet_lite0")
    frame = torch.randn(1, 3, 64, 64)
    features = encoder(frame[:, :, None].expand(-1, -1, 8, -1, -1)).features
    for feature, still in zip(features, encoder.encode_frames(frame), strict=True):
        torch.testing.assert_close(feature, still[:, :, None].expand_as(feature), rtol=1e-4, atol=1e-4)


# Initialisation, saving and loading, gradients


@pytest.mark.parametrize(
    ("create", "name"),
    [(create_video_encoder, name) for name in [*ONE_OF_EACH, "timm/convnext_atto"]]
    + [(create_audio_encoder, name) for name in ("vggish", "log_mel_cnn")],
)
@torch.no_grad()
def test_seeded_and_round_trip(create, name, tmp_path):
    encoder = seeded(create, name)
    assert_equal_states(encoder, seeded(create, name))
    encoder.save_pretrained(tmp_path)
    loaded = type(encoder).from_pretrained(tmp_path)
    assert not loaded.training and settings(loaded) == settings(encoder)
    assert_equal_states(encoder, loaded)
    if isinstance(encoder, VideoEncoder):
        assert loaded.feature_info == encoder.feature_info
        assert (loaded.image_mean, loaded.image_std) == (encoder.image_mean, encoder.image_std)
        condition = torch.randn(1, 3, 8, 32, 64)
    else:
        assert loaded.input_size == encoder.input_size
        condition = torch.randn(1, 1, 3, 64, 64)
    for one, other in zip(encoder(condition).features, loaded(condition).features, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_weight_is_used(name):
    encoder = seeded(create_video_encoder, name)
    sum(feature.sum() for feature in encoder(torch.randn(1, 3, 8, 64, 64)).features).backward()
    assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["mvit_v2_s", "swin3d_t", "timm/test_efficientnet_gn", "timm/test_resnet"])
def test_gradient_checkpointing(name):
    encoder = seeded(create_video_encoder, name).train()
    calls = []
    blocks = {"mvit_v2_s": "blocks", "swin3d_t": "features.4", "timm/test_resnet": "backbone.layer3"}
    for block in encoder.get_submodule(blocks.get(name, "backbone.blocks")):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    video = torch.randn(2, 3, 4, 32, 64)

    def gradients():
        encoder.zero_grad()
        calls.clear()
        torch.manual_seed(1)  # stochastic depth
        sum(feature.square().sum() for feature in encoder(video).features).backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()], len(calls)

    plain, plain_calls = gradients()
    encoder.enable_gradient_checkpointing()
    checkpointed, checkpointed_calls = gradients()
    assert checkpointed_calls == 2 * plain_calls > 0
    torch.testing.assert_close(checkpointed, plain)


def test_a_backbone_that_cannot_checkpoint_gradients():
    with pytest.raises(InputError, match="timm/hrnet_w18_small cannot checkpoint gradients"):
        create_video_encoder("timm/hrnet_w18_small").enable_gradient_checkpointing()


# Published weights


@pytest.mark.parametrize("name", ["mvit_v2_s", "swin3d_t", "s3d"])
def test_torchvision_file(name, tmp_path, monkeypatch):
    torch.manual_seed(1)
    state = torchvision.models.get_model(name).state_dict()
    torch.save(state, tmp_path / "published.pth")
    encoder = seeded(create_video_encoder, name, pretrained=tmp_path / "published.pth")
    assert "pretrained" not in encoder.config
    loaded = encoder.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded if not key.startswith("norms."))

    # The same as found in torch hub's folder.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "published.pth").rename(folder / encoder.published.url.rpartition("/")[2])
    assert_equal_states(encoder, seeded(create_video_encoder, name, pretrained=True))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "convnext_atto"])
@torch.no_grad()
def test_timm_file(name, tmp_path):
    torch.manual_seed(1)
    published = timm.create_model(name).eval()
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    encoder = seeded(create_video_encoder, f"timm/{name}", pretrained=str(tmp_path / "model.safetensors"))
    frames = torch.randn(2, 3, 64, 64)
    expected = published.forward_intermediates(frames, intermediates_only=True)[-4:]
    for feature, intermediate in zip(encoder.encode_frames(frames), expected, strict=True):
        torch.testing.assert_close(feature, intermediate)


@torch.no_grad()
def test_file_of_the_efficientnet_lite_port(tmp_path):
    """The port's own network is the oracle: the same features at all four scales, and the same names for none else."""
    port = draw_weights(EfficientNet.from_name("efficientnet-lite0"))
    torch.save(port.state_dict(), tmp_path / "lite0.pth")
    encoder = create_video_encoder("timm/tf_efficientnet_lite0", pretrained=tmp_path / "lite0.pth").eval()
    frames = torch.randn(2, 3, 224, 224)  # the size that the port's padding is for
    x, expected = port._swish(port._bn0(port._conv_stem(frames))), []
    for index, block in enumerate(port._blocks):
        x = block(x)
        if index in (2, 4, 10, 15):
            expected.append(x)
    for ours, theirs in zip(encoder.encode_frames(frames), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="not the weights of this"):
        create_video_encoder("timm/tf_efficientnet_lite1", pretrained=tmp_path / "lite0.pth")


@torch.no_grad()
def test_folded_batch_normalisations_change_nothing(tmp_path):
    """Neither in what a file's weights give, nor after saving and loading; other families are refused."""
    network = draw_weights(timm.create_model("tf_efficientnet_lite0"))
    save_file(network.state_dict(), tmp_path / "lite0.safetensors")
    plain, folded = (
        create_video_encoder(
            "timm/tf_efficientnet_lite0", pretrained=tmp_path / "lite0.safetensors", fold_batch_norm=fold
        ).eval()
        for fold in (False, True)
    )
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    folded.save_pretrained(tmp_path / "folded")
    loaded = TimmVideoEncoder.from_pretrained(tmp_path / "folded")
    video = torch.randn(2, 3, 4, 64, 96)
    for one, two, three in zip(*(e(video).features for e in (plain, folded, loaded)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)
        assert torch.equal(two, three)
    with pytest.raises(InputError, match="networks of timm's EfficientNet family, not for resnet18"):
        create_video_encoder("timm/resnet18", fold_batch_norm=True)


def test_vggish_file(tmp_path):
    torch.manual_seed(1)
    state = {**VGGishEncoder().state_dict(), "embeddings.0.weight": torch.zeros(4, 4)}
    torch.save(state, tmp_path / "vggish-10086976.pth")
    encoder = create_audio_encoder("vggish", pretrained=tmp_path / "vggish-10086976.pth")
    convolutions = [f"features.{index}" for index in (0, 3, 6, 8, 11, 13)]
    assert list(encoder.state_dict()) == [f"{layer}.{kind}" for layer in convolutions for kind in ("weight", "bias")]
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


def test_download_that_fails(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(InputError) as caught:
        create_video_encoder("mvit_v2_s", pretrained=True)
    assert "mvit_v2_s-ae3be167.pth" in str(caught.value) and str(tmp_path / "hub" / "checkpoints") in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r'pretrained="path/to/model.safetensors"'):
        create_video_encoder("timm/efficientnet_lite0", pretrained=True)
    with pytest.raises(InputError, match=r"vggish-10086976\.pth"):
        create_audio_encoder("vggish", pretrained=True)
    with pytest.raises(InputError, match="from_pretrained"):
        create_audio_encoder("log_mel_cnn", pretrained=True)


class Code:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"no weights", "cannot be read"),
        (Code(), "cannot be read"),
        ({"epoch": 3}, "something other than tensors"),
        ({}, "tensors missing: "),
        ("unknown", "tensors not known: 1, the first is extra"),
        ("shape", "tensors of another shape: 1, the first is features.0.bias"),
    ],
)
def test_wrong_file_is_refused_and_changes_nothing(content, message, tmp_path):
    encoder = seeded(create_audio_encoder, "vggish")
    if content == "unknown":
        content = {**encoder.state_dict(), "extra": torch.zeros(1)}
    elif content == "shape":
        content = {**encoder.state_dict(), "features.0.bias": torch.zeros(1)}
    if isinstance(content, bytes):
        (tmp_path / "weights.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message):
        encoder.load_pretrained(tmp_path / "weights.pth")
    assert_equal_states(encoder, seeded(create_audio_encoder, "vggish"))


def test_weights_of_another_timm_model_are_refused(tmp_path):
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "resnet34.safetensors")
    with pytest.raises(InputError, match="tensors not known"):
        create_video_encoder("timm/resnet18", pretrained=tmp_path / "resnet34.safetensors")


# The registry


def test_lists():
    umt = ["umt_b16", "umt_b16_pyramid", "umt_l16", "umt_l16_pyramid"]
    assert list_video_encoders() == ["mvit_v2_s", "s3d", "swin3d_b", "swin3d_s", "swin3d_t", "timm", *umt]
    assert list_audio_encoders() == ["log_mel_cnn", "vggish"]


@pytest.mark.parametrize(
    ("create", "name", "config", "message"),
    [
        (create_video_encoder, "mvit_v2", {}, "mvit_v2_s.*the video encoders are: mvit_v2_s, s3d"),
        (create_audio_encoder, "vgish", {}, "did you mean vggish.*the audio encoders are"),
        (create_video_encoder, "s3d", {"frames": 8}, "did you mean num_frames.*S3DEncoder takes: num_frames"),
        (create_audio_encoder, "vggish", {"channels": 8}, "VGGishEncoder takes: none"),
        (create_video_encoder, "timm", {}, "needs the configuration key 'model_name'"),
        (create_video_encoder, "timm/resnet18", {"model_name": "resnet34"}, "leave out model_name"),
        (create_video_encoder, "timm/efficientnet_lit0", {}, "did you mean efficientnet_lite0"),
        (create_video_encoder, "timm/resnet18.nowhere", {}, "nowhere"),
        (create_video_encoder, "timm/vit_small_patch16_224", {}, "of stride 16; 4, 8, 16, 32 are needed"),
        (create_video_encoder, "timm/swin_tiny_patch4_window7_224", {}, "one frame size only"),
        (create_video_encoder, "swin3d_t", {"variant": "swin3d_l"}, "variant must be one of swin3d_t"),
        (create_video_encoder, "s3d", {"num_frames": 4}, "at least 5 frames, got 4"),
        (create_audio_encoder, "log_mel_cnn", {"channels": 20}, "multiple of 32, got 20"),
        (create_audio_encoder, "log_mel_cnn", {"input_size": (60, 64)}, r"multiples of 16, got \(60, 64\)"),
    ],
)
def test_wrong_names_and_configurations(create, name, config, message):
    with pytest.raises(InputError, match=message):
        create(name, **config)


def test_registering(own_registry):
    class Still(VideoEncoder):
        pass

    class Silent(AudioEncoder):
        pass

    assert register_video_encoder("still")(Still) is Still
    assert register_video_encoder("still")(Still) is Still
    with pytest.raises(InputError, match=r"registered already.*Still"):
        register_video_encoder("still")(MViTv2Encoder)
    with pytest.raises(InputError, match="not a subclass of VideoEncoder"):
        register_video_encoder("silent")(Silent)
    assert type(create_video_encoder("still")) is Still
    register_audio_encoder("silent")(Silent)
    assert "silent" in list_audio_encoders() and "still" in list_video_encoders()


OWN_ENCODER = """
import torch
from diffsal_diffusers.encoders import EncoderOutput, FeatureInfo, VideoEncoder, register_video_encoder

@register_video_encoder("pooled")
class PooledEncoder(VideoEncoder):
    feature_info = [FeatureInfo(3, stride, 8) for stride in (4, 8, 16, 32)]
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(()))
    def forward(self, video):
        pool = torch.nn.functional.avg_pool3d
        return EncoderOutput(features=[pool(self.scale * video, (2, s, s)) for _, s, _ in self.feature_info])
"""


def test_encoder_from_a_file_of_ones_own(own_registry, tmp_path, monkeypatch):
    (tmp_path / "my_pooled_encoder.py").write_text(OWN_ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_pooled_encoder")
    encoder = create_video_encoder("pooled")
    assert type(encoder) is module.PooledEncoder
    encoder.save_pretrained(tmp_path / "saved")
    loaded = module.PooledEncoder.from_pretrained(tmp_path / "saved")
    assert_equal_states(encoder, loaded)
    features = loaded(torch.randn(1, 3, 16, 64, 96)).features
    assert shapes(features) == [(1, c, t, 64 // s, 96 // s) for c, s, t in encoder.feature_info]
