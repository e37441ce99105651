"""The model that ships: what it is made of, that it loads as users load it, and that it has learned what it claims."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffsal_diffusers.training.config import load_config
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from stand_ins import tiny_pipeline

import diffsal_diffusers
from diffsal_diffusers import DiffSalPipeline, InputError, load_pipeline
from diffsal_diffusers.data import load_saliency_dataset, open_recording
from diffsal_diffusers.evaluation import PipelinePredictor, VideoScorer
from diffsal_diffusers.evaluation.predictors import centre

# Six of OSIE's validation images (Xu et al. 2014, MIT licence beside them) and where 15 people looked in them.
OSIE = Path(__file__).parent / "fixtures" / "osie"


@pytest.fixture(scope="module")
def tiny() -> DiffSalPipeline:
    pipe = DiffusionPipeline.from_pretrained(diffsal_diffusers.pretrained("tiny"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scores(predictors, name, root=None, limit=None, frame_step=8):
    """The mean over videos of each predictor's metrics."""
    results = []
    split = "test" if name == "synthetic" else "validation"
    for entry in list(load_saliency_dataset(name, root, split=split))[:limit]:
        recording = open_recording(entry)
        frames = range(0, recording.num_frames, frame_step)
        scorer = VideoScorer(recording, list(predictors), ("cc", "nss"))
        maps = {title: predict(recording, frames) for title, predict in predictors.items()}
        for index in frames:
            scorer.score(index, recording.density(index), {title: next(m) for title, m in maps.items()})
        results.append(scorer.means())
    return {title: {m: np.mean([r[title][m] for r in results]) for m in ("cc", "nss")} for title in predictors}


class TestTiny:
    def test_the_folder(self):
        folder = diffsal_diffusers.pretrained("tiny")
        weights = [file for file in folder.rglob("*") if file.suffix not in (".json", ".md") and file.is_file()]
        assert len(weights) == 3 and all(file.suffix == ".safetensors" for file in weights)
        assert sum(file.stat().st_size for file in weights) <= 20e6
        assert all(value.dtype == torch.float16 for file in weights for value in load_file(file).values())
        assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")

    def test_names(self):
        assert diffsal_diffusers.list_pretrained() == ["tiny"]
        with pytest.raises(InputError, match="there is no trained model 'huge'; there are tiny"):
            diffsal_diffusers.pretrained("huge")

    def test_a_folder_of_the_same_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tiny_pipeline().save_pretrained("tiny")
        assert tuple(load_pipeline("tiny").processor.config.frame_size) == (256, 416)
        for model in ("./tiny", Path("tiny")):
            assert tuple(load_pipeline(model).processor.config.frame_size) == (64, 96)

    def test_the_recipe(self):
        """Each stage begins with what the one before makes, and the model card names what the last one makes."""
        stages = [load_config(name) for name in ("tiny_sound", "tiny_pictures", "tiny")]
        made = [f"{stage.output}/checkpoints/step-{stage.steps:08d}" for stage in stages]
        assert [stage.model.folder for stage in stages] == [None, *made[:2]]
        assert made[2] in (diffsal_diffusers.pretrained("tiny") / "README.md").read_text()

    def test_it_loads_as_the_default_in_float32(self, tiny):
        assert isinstance(tiny, DiffSalPipeline)
        default = load_pipeline()
        for name in ("unet", "video_encoder", "audio_encoder"):
            network, other = getattr(tiny, name), getattr(default, name)
            assert not network.training
            for (key, value), again in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
                assert value.dtype == torch.float32 and value.isfinite().all(), key
                assert torch.equal(value, again)

    def test_it_knows_where_people_look(self, tiny):
        """Far better than the centre, on whole pictures and under a moving camera."""
        for name in ("OSIE", "OSIE-still"):
            found = scores({"tiny": PipelinePredictor(tiny), "centre": centre}, name, OSIE)
            assert found["tiny"]["cc"] > 0.65 and found["tiny"]["nss"] > 2, found
            assert found["centre"]["cc"] < 0.45, found

    def test_it_listens(self, tiny):
        """In held-out scenes where people look at what is heard, it is better with the sound than without."""
        predictors = {"av": PipelinePredictor(tiny), "v": PipelinePredictor(tiny, "v")}
        found = scores(predictors, "synthetic", limit=6)
        assert found["av"]["cc"] > found["v"]["cc"] + 0.1, found

    def test_it_does_not_mind_the_side(self, tiny):
        """A mirrored picture has a mirrored map."""
        picture = open_recording(load_saliency_dataset("OSIE-still", OSIE, "validation")[0]).frame(0)
        frames = np.repeat(picture[None], 2, axis=0)
        maps = [
            tiny(video, generator=torch.Generator().manual_seed(0)).saliency[1]
            for video in (frames, frames[:, :, ::-1].copy())
        ]
        assert np.corrcoef(maps[0].ravel(), maps[1][:, ::-1].ravel())[0, 1] > 0.93

    @pytest.mark.parametrize(("stride", "known"), [(1, range(7)), (4, range(5))])
    def test_it_does_not_look_ahead(self, tiny, stride, known):
        """Pictures that come later change no map, but for those between two that are predicted."""
        video = np.random.default_rng(0).integers(0, 256, (12, 96, 160, 3), np.uint8)
        whole, begun = (
            tiny(frames, frame_stride=stride, generator=torch.Generator().manual_seed(0)).saliency
            for frames in (video, video[:7])
        )
        np.testing.assert_allclose(whole[known], begun[known], atol=1e-5)

    def test_it_hears_less_than_half_a_second_ahead(self, tiny):
        video = np.random.default_rng(0).integers(0, 256, (13, 96, 160, 3), np.uint8)
        sound = np.random.default_rng(1).normal(0, 0.1, 32000).astype(np.float32)
        changes = []
        for end in (0.30, 0.42):  # seconds after the first frame, from where the sound is another one
            other = sound.copy()
            other[int(end * 16000) :] = 0
            first, second = (
                tiny(video, audio=(s, 16000), generator=torch.Generator().manual_seed(0)).saliency[0]
                for s in (sound, other)
            )
            changes.append(np.abs(first - second).max())
        assert changes[0] > 1e-5 > changes[1]
