"""Imported checkpoints score like the project's own model, a slow transcription in float64.

The transcription reads the foreign state dict; the bundle is served by the package.
"""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.errors import StackMismatchError
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import normalize_pixels
from tests.base_models import slow_twin, tiny_base_model, token_ids
from tests.tiny import random_pixels
from tests.training.importing.foreign import CLASSES, Writer, halved, save_dassl
from training.errors import ImportFormatError
from training.importing.import_run import ImportJob, run_import

TOLERANCE = 1e-5
BOOSTS = [None, (2, 3)]


@pytest.fixture(params=BOOSTS, ids=["plain", "boosted"])
def base_model(request):
    return tiny_base_model(request.param)


@pytest.fixture
def imported(tmp_path, base_model):
    """Write a state as Dassl does, import it, and return the bundle."""

    def import_state(state, method, **options):
        path = save_dassl(tmp_path / "model.pth.tar-50", state)
        job = ImportJob(path, method, "demo", CLASSES, tmp_path / "demo.safetensors", **options)
        run_import(job, base_model)
        return read_bundle(job.out.read_bytes())

    return import_state


def pixels_and_images(base_model):
    pixels = random_pixels(2)
    return pixels, normalize_pixels(pixels, base_model.backbone.preprocess).double()


def similarities(base_model, bundle):
    """<f, g> of two images and all classes, as served."""
    model = PromptedClip(base_model.backbone)
    stack = model.load_stack(bundle)
    return model.logits(model.encode_images(random_pixels(2), [stack, stack]), stack) / stack.logit_scale


def slow_text(base_model, text, adapt, names=CLASSES):
    """g of each class; `adapt` is one group, or a list with one group per class."""
    slow = slow_twin(base_model)
    groups = adapt if isinstance(adapt, list) else [adapt] * len(names)
    return torch.stack(
        [
            slow.text(token_ids(base_model, text.replace("{}", name)), group, base_model.text_boost)
            for name, group in zip(names, groups, strict=True)
        ]
    )


def slow_images(base_model, adapt=None):
    slow = slow_twin(base_model)
    _, images = pixels_and_images(base_model)
    return torch.stack([slow.image(image, base_model.image_boost, adapt) for image in images])


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.shape == expected.shape
    assert float((found.double() - expected).abs().max()) < tolerance


def layers(state, first, deeper, n):
    """The group [layers, tokens, width] of numbered tensors."""
    return torch.stack([state[first], *(state[deeper.format(i)] for i in range(*n))]).double()


@pytest.mark.parametrize("per_class", [False, True])
def test_coop_contexts_precede_the_names(imported, base_model, per_class):
    state = Writer().coop(per_class=per_class)
    bundle = imported(state, "coop")
    context = state["ctx"].double()
    adapt = [own[None] for own in context] if per_class else context[None]
    text = slow_text(base_model, "{}.", adapt)
    assert_close(torch.from_numpy(bundle.tensors["text.features"]), text)
    assert_close(similarities(base_model, bundle), slow_images(base_model) @ text.T)
    assert bundle.manifest.stack.labels == ("own" if per_class else "any")


def test_the_last_word_of_a_prograd_context_stays_before_the_names(imported, base_model):
    words = "a type of pet, a photo of a"
    state = Writer().coop(n_tokens=len(words.split(" "))) | Writer().words(8, "a")
    assert len(base_model.backbone.tokenizer.encode(words)) == 9
    bundle = imported(state, "coop")
    assert bundle.manifest.templates == ["a {}."]
    text = slow_text(base_model, "a {}.", state["ctx"].double()[None])
    assert_close(torch.from_numpy(bundle.tensors["text.features"]), text)


def test_a_shared_coop_context_supports_other_labels(imported, base_model):
    state = Writer().coop()
    model = PromptedClip(base_model.backbone)
    opened = model.with_labels(model.load_stack(imported(state, "coop")), ["red bird"])
    assert_close(opened.text_features, slow_text(base_model, "{}.", state["ctx"][None], names=["red bird"]))


@pytest.mark.parametrize(("position", "per_class"), [("middle", False), ("front", False), ("middle", True)])
def test_with_the_name_not_at_the_end_only_text_features_are_exported(tmp_path, position, per_class):
    plain = tiny_base_model()
    state = Writer().coop(n_tokens=3, per_class=per_class)
    path = save_dassl(tmp_path / "model.pth.tar-50", state)
    run_import(ImportJob(path, "coop", "demo", CLASSES, tmp_path / "b.safetensors", position=position), plain)
    bundle = read_bundle((tmp_path / "b.safetensors").read_bytes())

    slow, expected = slow_twin(plain), []
    for index, name in enumerate(CLASSES):
        # The transcription knows prompts behind the start token only: here the whole text is handed in as prompts.
        start, *words, end = token_ids(plain, f"{name}.")
        embedded = slow.w["token_embedding.weight"][torch.tensor(words)]
        context = (state["ctx"][index] if per_class else state["ctx"]).double()
        n_before = 1 if position == "middle" else 0
        sequence = torch.cat([context[:n_before], embedded[:-1], context[n_before:], embedded[-1:]])
        expected.append(slow.text([start, end], sequence[None]))
    assert_close(torch.from_numpy(bundle.tensors["text.features"]), torch.stack(expected))
    assert set(bundle.tensors) == {"text.features"}
    assert bundle.manifest.stack.labels == "own"


def test_cocoop_shifts_its_context_per_image(imported, base_model):
    state = Writer().cocoop()
    found = similarities(base_model, imported(state, "cocoop"))
    w = {name: value.double() for name, value in state.items()}
    rows = []
    for f in slow_images(base_model):
        hidden = (w["meta_net.linear1.weight"] @ f + w["meta_net.linear1.bias"]).clamp(min=0)
        shift = w["meta_net.linear2.weight"] @ hidden + w["meta_net.linear2.bias"]
        rows.append(slow_text(base_model, "{}.", (w["ctx"] + shift)[None]) @ f)
    assert_close(found, torch.stack(rows))


@pytest.mark.parametrize(("n_tokens", "depth", "between"), [(2, 3, "of a"), (4, 2, ""), (2, 1, "of a"), (3, 3, "a")])
def test_maple_couplings_become_image_prompts_and_remaining_words_stay(imported, base_model, n_tokens, depth, between):
    state = Writer().maple(n_tokens, depth, between)
    bundle = imported(state, "maple")
    text = layers(state, "prompt_learner.ctx", "prompt_learner.compound_prompts_text.{}", (depth - 1,))
    maps = ["proj", *(f"compound_prompt_projections.{i}" for i in range(depth - 1))]
    image = torch.stack(
        [
            group @ state[f"prompt_learner.{name}.weight"].double().T + state[f"prompt_learner.{name}.bias"].double()
            for group, name in zip(text, maps, strict=True)
        ]
    )
    features = slow_text(base_model, f"{between} {{}}.".strip(), text)
    assert bundle.manifest.templates == [f"{between} {{}}.".strip()]
    assert_close(torch.from_numpy(bundle.tensors["text.features"]), features)
    assert_close(similarities(base_model, bundle), slow_images(base_model, image) @ features.T)


@pytest.mark.parametrize("method", ["ivlp", "promptsrc"])
def test_independent_prompts_of_both_towers_keep_their_own_depths(imported, base_model, method):
    state = getattr(Writer(), method)(n_text=4, n_image=3, text_depth=3, image_depth=2)
    bundle = imported(state, method)
    text = layers(state, "prompt_learner.ctx", "text_encoder.transformer.resblocks.{}.VPT_shallow", (1, 3))
    image = layers(state, "image_encoder.VPT", "image_encoder.transformer.resblocks.{}.VPT_shallow", (1, 2))
    features = slow_text(base_model, "{}.", text)
    assert_close(torch.from_numpy(bundle.tensors["text.features"]), features)
    assert_close(similarities(base_model, bundle), slow_images(base_model, image) @ features.T)


def test_ivlp_in_the_text_tower_alone_leaves_the_image_tower_plain(imported, base_model):
    state = Writer().ivlp(n_text=2, image_depth=0, between="of a")
    bundle = imported(state, "ivlp")
    text = layers(state, "prompt_learner.ctx", "text_encoder.transformer.resblocks.{}.VPT_shallow", (1, 3))
    assert "image.adapt" not in bundle.tensors
    features = slow_text(base_model, "of a {}.", text)
    assert_close(similarities(base_model, bundle), slow_images(base_model) @ features.T)


@pytest.mark.parametrize("is_matrix", [False, True])
def test_promptkd_scores_in_its_teachers_space(imported, base_model, tmp_path, is_matrix):
    writer = Writer()
    state = writer.promptkd()
    if is_matrix:
        state = {
            name: value.flatten(1) if value.ndim == 4 and "trans." in name else value for name, value in state.items()
        }
    features = 3 * writer.randn(len(CLASSES), 10)
    torch.save(features, tmp_path / "teacher.pt")
    bundle = imported(state, "promptkd", text_features=tmp_path / "teacher.pt")

    image = layers(state, "image_encoder.VPT", "image_encoder.transformer.resblocks.{}.VPT_shallow", (1, 3))
    trans = {name.removeprefix("VPT_image_trans.conv1."): value.double() for name, value in state.items()}
    _, images = pixels_and_images(base_model)
    lengths = base_model.embed_images(images.float(), image.float()).norm(dim=1).double()
    rows = []
    for f, length in zip(slow_images(base_model, image), lengths, strict=True):
        hidden = trans["0.weight"].flatten(1) @ (f * length) + trans["0.bias"]
        normed = (hidden - trans["1.running_mean"]) / (trans["1.running_var"] + 1e-5).sqrt()
        hidden = (normed * trans["1.weight"] + trans["1.bias"]).clamp(min=0)
        answer = trans["3.weight"].flatten(1) @ hidden + trans["3.bias"]
        rows.append((features.double() / features.double().norm(dim=1, keepdim=True)) @ (answer / answer.norm()))
    assert_close(similarities(base_model, bundle), torch.stack(rows))
    assert bundle.manifest.stack.labels == "own"
    model = PromptedClip(base_model.backbone)
    with pytest.raises(StackMismatchError):
        model.with_labels(model.load_stack(bundle), ["bird"])


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "ivlp", "promptsrc"])
def test_a_float16_checkpoint_of_a_data_parallel_run_is_imported_exactly(imported, method):
    state = halved(getattr(Writer(), method)())
    whole = imported({name: value.float() for name, value in state.items()}, method)
    half = imported({f"module.{name}": value for name, value in state.items()}, method)
    assert set(half.tensors) == set(whole.tensors)
    for name, array in whole.tensors.items():
        assert array.dtype == "float32"
        assert (half.tensors[name] == array).all()


def test_weights_averaged_in_float16_are_within_tolerance(imported):
    state = halved(Writer().promptsrc())
    epochs = torch.arange(1, 21)
    weights = torch.exp(-0.5 * ((epochs - 15.0) / 1.0) ** 2).double()
    weights /= weights.sum()
    averaged = {}
    for name, value in state.items():
        averaged[name] = value * float(weights[0])
        for weight in weights[1:]:
            averaged[name] = averaged[name] + value * float(weight)
    imported(averaged, "promptsrc")
    once = {name: value for name, value in averaged.items() if "ZS_image_encoder" not in name}
    with pytest.raises(ImportFormatError, match="deviates from the backbone's"):
        imported(once, "ivlp")  # which does not average: there the same differences mean another CLIP
