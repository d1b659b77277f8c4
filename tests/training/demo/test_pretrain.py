import dataclasses

import pytest
import torch

from training.demo.augment import augment_broadly
from training.demo.models import encode_text, export_weights
from training.demo.pretrain import CheckpointMismatchError, Pretraining, PretrainPlan, learning_rate, pretrain
from training.demo.render import draw_series, seeded_generator


@pytest.fixture
def plan(tiny_arch):
    return PretrainPlan(
        arch=tiny_arch, n_steps=6, n_pictures=64, batch_size=8, n_warmup_steps=2, augmented_share=0.5, seed=3
    )


def weights(run):
    return {**run.model.state_dict(), **{f"heads.{k}": v for k, v in run.heads.state_dict().items()}}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class KilledError(Exception):
    pass


def test_a_killed_and_resumed_run_is_bit_identical(plan, tmp_path):
    whole = pretrain(plan, tmp_path / "whole.ckpt")

    def kill_at_five(progress):
        if progress.step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(plan, tmp_path / "cut.ckpt", n_steps_per_save=2, on_step=kill_at_five)
    steps = []
    resumed = pretrain(plan, tmp_path / "cut.ckpt", on_step=lambda progress: steps.append(progress.step))
    assert steps == [5, 6]
    assert_same_bits(weights(whole), weights(resumed))


def test_a_finished_run_is_not_trained_again(plan, tmp_path):
    first = pretrain(plan, tmp_path / "run.ckpt")
    steps = []
    second = pretrain(plan, tmp_path / "run.ckpt", on_step=steps.append)
    assert steps == []
    assert_same_bits(weights(first), weights(second))


def test_a_checkpoint_of_another_plan_is_rejected(plan, tmp_path):
    pretrain(dataclasses.replace(plan, n_steps=1), tmp_path / "run.ckpt")
    with pytest.raises(CheckpointMismatchError, match="remove it"):
        pretrain(plan, tmp_path / "run.ckpt")


def test_training_does_not_change_the_global_random_state(plan):
    before = torch.random.get_rng_state()
    Pretraining(plan).step()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_deeper_model_grows_from_a_checkpoint(plan, tmp_path):
    pretrain(plan, tmp_path / "small.ckpt")
    deep = dataclasses.replace(plan, arch=f"{plan.arch}-deep")
    grown = Pretraining(deep, grow_from=tmp_path / "small.ckpt")
    small = Pretraining(plan)
    small.resume(tmp_path / "small.ckpt")
    pixels = torch.randn(2, 3, 64, 64, generator=seeded_generator(1))
    with torch.inference_mode():
        torch.testing.assert_close(grown.model.encode_image(pixels), small.model.encode_image(pixels))


def test_a_deeper_model_grows_from_exported_weights(plan, tmp_path):
    small = pretrain(plan, tmp_path / "small.ckpt")
    export_weights(small.model, small.book.vocabulary_V, tmp_path / "small.safetensors")
    grown = Pretraining(dataclasses.replace(plan, arch=f"{plan.arch}-deep"), grow_from=tmp_path / "small.safetensors")
    pixels = torch.randn(2, 3, 64, 64, generator=seeded_generator(1))
    captions = small.book.tokens("shape", "a {}.")
    with torch.inference_mode():
        for own, other in (
            (grown.model.encode_image(pixels), small.model.encode_image(pixels)),
            (encode_text(grown.model, captions), encode_text(small.model, captions)),
        ):
            torch.testing.assert_close(own, other, atol=5e-3, rtol=1e-2)  # the exported weights are float16


def test_a_share_of_the_images_is_in_synthesised_styles(plan, monkeypatch):
    plain = dataclasses.replace(plan, augmented_share=0.0, batch_size=64)
    styled = []
    monkeypatch.setattr(
        "training.demo.pretrain.synthesise", lambda pixels, generator: styled.append(len(pixels)) or 1 - pixels
    )
    losses = [Pretraining(dataclasses.replace(plain, styled_share=share)).step().head_loss for share in (0.0, 0.5, 1.0)]
    assert len(set(losses)) == 3
    assert 20 < styled[0] < 44
    assert styled[1] == 64


def test_training_overfits_a_small_data_set(tiny_arch, tmp_path):
    losses = []
    plan = PretrainPlan(arch=tiny_arch, n_steps=60, n_pictures=16, batch_size=16, peak_lr=3e-3, n_warmup_steps=5)
    pretrain(plan, tmp_path / "run.ckpt", on_step=lambda progress: losses.append(progress.head_loss))
    assert losses[-1] < 0.8 * losses[0]


def test_the_learning_rate_warms_up_and_ends_near_zero(plan):
    long = dataclasses.replace(plan, n_steps=1000, n_warmup_steps=10)
    assert learning_rate(long, 0) < learning_rate(long, 9) <= long.peak_lr
    assert learning_rate(long, 999) < 1e-3 * long.peak_lr


def test_augmentation_changes_about_the_given_share():
    clean = draw_series(1, 128).pixels.float() / 255
    before = clean.clone()
    augmented = augment_broadly(clean, 0.5, seeded_generator(2))
    changed = (augmented != clean).flatten(1).any(1).float().mean().item()
    assert torch.equal(clean, before)
    assert 0.3 < changed < 0.65
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert torch.equal(augment_broadly(clean, 0.0, seeded_generator(2)), clean)


def test_a_longer_cosine_does_not_change_the_first_steps(plan):
    whole, cut = dataclasses.replace(plan, n_steps=1000), dataclasses.replace(plan, n_steps=600, n_cosine_steps=1000)
    assert [learning_rate(whole, step) for step in range(600)] == [learning_rate(cut, step) for step in range(600)]
