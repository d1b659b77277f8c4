"""Rejected checkpoints: errors name the expected and found tensors and the remedy."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from tests.base_models import tiny_base_model
from tests.tiny import tiny_backbone
from tests.training.importing.foreign import CLASSES, EMBED, POSITIONS, WIDTH, Writer, save_dassl
from training.errors import ImportFormatError
from training.importing.import_run import ImportJob, run_import
from training.prompted_backbone import PromptedBackbone


@pytest.fixture
def attempt(tmp_path):
    """Import a state; the bundle must not exist after a refusal."""

    def import_state(state, method, *, base_model=None, classes=CLASSES, **options):
        path = save_dassl(tmp_path / "model.pth.tar-5", state)
        job = ImportJob(path, method, "demo", classes, tmp_path / "demo.safetensors", **options)
        try:
            return run_import(job, base_model or tiny_base_model())
        finally:
            import_state.left_nothing = not job.out.exists()

    return import_state


def refusal(attempt, state, method, **options):
    with pytest.raises(ImportFormatError) as caught:
        attempt(state, method, **options)
    assert attempt.left_nothing
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("maple", "coop"),
        ("coop", "cocoop"),
        ("cocoop", "maple"),
        ("cocoop", "coop"),
        ("promptsrc", "maple"),
        ("promptsrc", "ivlp"),
        ("ivlp", "promptkd"),
        ("promptkd", "promptsrc"),
        ("maple", "ivlp"),
    ],
)
def test_the_method_of_a_checkpoint_is_detected(attempt, written, named):
    message = refusal(attempt, getattr(Writer(), written)(), named)
    assert f"use --method {written}" in message
    assert "Expected" in message
    assert "Found" in message


def test_an_error_names_file_problem_and_expected_and_found_tensors(attempt, tmp_path):
    message = refusal(attempt, {"ctx": torch.ones(4, 512)}, "coop")
    assert str(tmp_path / "model.pth.tar-5") in message
    assert f"ctx is [4, 512], expected [tokens, {WIDTH}]" in message
    assert "ctx [tokens, text width] or [classes, tokens, text width]" in message
    assert "Found 1 tensors: ctx [4, 512]." in message
    assert "--method" not in message


def test_at_most_five_tensors_are_listed_with_escaped_names(attempt):
    state = {f"layer{i}.weight": torch.ones(1) for i in range(20)} | {"\x1b[2J": torch.ones(1)}
    message = refusal(attempt, dict(reversed(state.items())), "coop")
    assert "and 16 more" in message
    assert message.count("[1]") == 5
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("coop", {"ctx": torch.ones(0, WIDTH)}, "ctx is [0, 32]"),
        ("coop", {"ctx": torch.ones(65, WIDTH)}, "65 prompt tokens, but a bundle allows at most 64"),
        ("coop", {"extra": torch.ones(3)}, "unexpected extra [3]"),
        ("cocoop", {"meta_net.linear1.weight": torch.ones(3, 99)}, f"is [3, 99], expected [hidden, {EMBED}]"),
        ("cocoop", {"meta_net.linear2.bias": None}, "meta_net.linear2.bias [32] is missing"),
        ("maple", {"prompt_learner.compound_prompts_text.7": torch.ones(2, WIDTH)}, "is numbered [0, 1, 7]"),
        (
            "maple",
            {"prompt_learner.compound_prompts_text.2": torch.ones(2, WIDTH)},
            "3 deeper prompts have 2 couplings",
        ),
        ("maple", {"prompt_learner.compound_prompts_text.1": torch.ones(3, WIDTH)}, "expected [2, 32]"),
        ("ivlp", {"text_encoder.transformer.resblocks.1.VPT_shallow": None}, "is numbered [2]"),
        ("ivlp", {"image_encoder.VPT": None}, "unexpected image_encoder.transformer.resblocks.1.VPT_shallow"),
        (
            "promptsrc",
            {"text_encoder.transformer.resblocks.3.VPT_shallow": torch.ones(4, WIDTH)},
            "prompts for 4 layers, but the backbone's tower has 3",
        ),
        ("promptkd", {"VPT_image_trans.conv1.1.running_var": -torch.ones(7)}, "running_var has negative values"),
        ("promptkd", {"VPT_image_trans.conv1.3.weight": torch.ones(10, 7, 3, 3)}, "expected [teacher width, 7, 1, 1]"),
    ],
)
def test_every_tensor_is_checked_by_name_and_shape(attempt, method, change, message):
    state = getattr(Writer(), method)() | change
    assert message in refusal(attempt, {name: value for name, value in state.items() if value is not None}, method)


@pytest.mark.parametrize(("method", "name"), [("coop", "ctx"), ("ivlp", "image_encoder.VPT")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_prompts_are_named(attempt, method, name, value):
    state = getattr(Writer(), method)()
    state[name][0, 0] = value
    assert f"{name} contains NaN or infinity" in refusal(attempt, state, method)


@pytest.mark.parametrize("method", ["maple", "ivlp", "promptsrc"])
def test_prompts_of_another_clip_are_rejected_by_the_first_differing_weight(attempt, method):
    other = PromptedBackbone(tiny_backbone("tiny", 1))
    message = refusal(attempt, getattr(Writer(), method)(), method, base_model=other)
    assert "was not trained on tiny (random:1)" in message
    assert "deviates from the backbone's by up to" in message
    assert "--backbone and --pretrained" in message


@pytest.mark.parametrize("method", ["maple", "ivlp", "promptsrc"])
def test_a_single_fine_tuned_weight_is_detected(attempt, method):
    state = getattr(Writer(), method)()
    state["text_encoder.ln_final.weight"][3] += 0.05
    assert "text_encoder.ln_final.weight" in refusal(attempt, state, method)


def test_a_clip_of_another_size_is_rejected_by_shape_or_name(attempt):
    state = Writer().maple()
    state["image_encoder.conv1.weight"] = torch.ones(32, 3, 16, 16)
    assert "the backbone's shape is [32, 3, 8, 8]" in refusal(attempt, state, "maple")
    state = Writer().maple() | {"image_encoder.transformer.resblocks.9.ln_1.weight": torch.ones(32)}
    assert "the backbone has no such tensor" in refusal(attempt, state, "maple")


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_the_start_token_embedding_identifies_another_clip_without_its_weights(attempt, method):
    other = PromptedBackbone(tiny_backbone("tiny", 1))
    message = refusal(attempt, getattr(Writer(), method)(), method, base_model=other)
    assert "its start token has another embedding" in message


def test_class_specific_contexts_need_the_training_classes_in_their_order(attempt):
    state = Writer().coop(per_class=True)
    message = refusal(attempt, state, "coop", classes=("cat", "dog"))
    assert "contexts for 3 classes, but 2 names were given" in message
    message = refusal(attempt, state, "coop", classes=("dog", "cat", "striped red tulip"))
    assert "class 1, 'dog', differs from training (2 of 3 differ)" in message


def trained_with(method, words):
    """A checkpoint whose prompts were followed by these words: ProGrad splits an initial text at its spaces."""
    state = getattr(Writer(), method)()
    prefix = "" if method in {"coop", "cocoop"} else "prompt_learner."
    n_prompts = POSITIONS - 1 - state[f"{prefix}token_suffix"].shape[1]
    return state | {f"{prefix}{name}": value for name, value in Writer().words(n_prompts, words).items()}


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "ivlp", "promptsrc"])
@pytest.mark.parametrize("words", ["", "a", "of a", "pet, a"])
def test_the_template_is_recognised_by_the_embeddings_of_the_training_texts(attempt, method, words):
    result = attempt(trained_with(method, words), method)
    assert result["text"].replace(" ,", ",") == f"{words} {{}}.".strip()
    assert [note for note in result["notes"] if "class texts" in note] == []


@pytest.mark.parametrize("classes", [("dog", "striped red tulip", "cat"), ("owl", "dog"), ("striped red tulip",)])
def test_one_training_class_among_the_names_shows_the_template(attempt, classes):
    assert attempt(trained_with("coop", "a"), "coop", classes=classes)["text"] == "a {}."


@pytest.mark.parametrize("classes", [("cow", "owl", "red bird"), ("cow", "owl")])
def test_words_before_new_class_names_must_be_named(attempt, classes):
    state = trained_with("coop", "a")
    message = refusal(attempt, state, "coop", classes=classes)
    assert "The training texts begin with 'a', such as 'a cat" in message
    assert "Pass --text 'a {}.'" in message
    assert attempt(state, "coop", classes=classes, template="a {}.")["text"] == "a {}."


def test_a_template_that_the_training_texts_contradict_names_the_one_that_fits(attempt):
    message = refusal(attempt, trained_with("coop", "a"), "coop", template="{}.")
    assert "was trained with --text 'a {}.', found --text '{}.'" in message


def test_words_that_are_not_in_the_training_texts_are_refused(attempt):
    message = refusal(attempt, trained_with("coop", ""), "coop", template="of a {}.", classes=("cow", "owl"))
    assert "was not trained with 'of a {}.' after the prompts: its first text is 'cat" in message
    assert "--text" in message


def test_a_recognised_template_is_noted(attempt):
    notes = attempt(trained_with("maple", ""), "maple")["notes"]
    assert "The text after the prompts is '{}.', as in training." in notes


def test_class_specific_contexts_keep_their_recognised_template(attempt):
    state = Writer().coop(per_class=True) | Writer().words(4, "a")
    assert attempt(state, "coop")["text"] == "a {}."


def test_a_custom_template_requires_the_name_at_the_end(attempt):
    message = refusal(attempt, Writer().coop(words=False), "coop", position="front", template="{}, a pet.")
    assert "must be '{}.', found '{}, a pet.'" in message


def test_promptkd_needs_its_teachers_text_features(attempt, tmp_path):
    state = Writer().promptkd(n_teacher=10)
    assert "[3, 10] for these classes, with --text-features" in refusal(attempt, state, "promptkd")
    path = tmp_path / "features.pt"
    for features, message in [
        (torch.ones(2, 10), "are [2, 10], expected [3, 10]"),
        (torch.zeros(3, 10), "a zero row"),
        (torch.full((3, 10), torch.nan), "NaN or infinity"),
        ({"a": torch.ones(3, 10), "b": torch.ones(3, 10)}, "found 2 entries"),
        ([torch.ones(3, 10)], "found list"),
    ]:
        torch.save(features, path)
        assert message in refusal(attempt, state, "promptkd", text_features=path)
    assert "do not exist" in refusal(attempt, state, "promptkd", text_features=tmp_path / "none.pt")
    path = tmp_path / "features.safetensors"
    path.write_bytes(b"nothing")
    assert "cannot be read as a safetensors file" in refusal(attempt, state, "promptkd", text_features=path)


def test_a_teacher_bundle_must_have_the_same_classes(attempt, tmp_path):
    attempt(Writer().promptsrc(), "promptsrc")
    teacher = (tmp_path / "demo.safetensors").rename(tmp_path / "teacher.safetensors")
    student = Writer(1).promptkd(n_teacher=EMBED)
    attempt(student, "promptkd", text_features=teacher)
    found = read_bundle((tmp_path / "demo.safetensors").read_bytes()).tensors["text.features"]
    assert abs(found - read_bundle(teacher.read_bytes()).tensors["text.features"]).max() < 1e-6
    (tmp_path / "demo.safetensors").unlink()
    for classes, message in [(("cat", "cow", "owl"), "its class 2 is 'dog'"), (CLASSES[:2], "it has 3 classes")]:
        assert message in refusal(attempt, student, "promptkd", classes=classes, text_features=teacher)


@pytest.mark.parametrize(
    ("method", "state", "classes", "note"),
    [
        (
            "coop",
            Writer().coop(words=False),
            CLASSES,
            "its backbone and the text after the prompts, '{}.', could",
        ),
        (
            "ivlp",
            {"prompt_learner.ctx": torch.ones(4, WIDTH)},
            CLASSES,
            "so the text after the prompts, '{}.', could",
        ),
        ("coop", Writer().coop(), ("a", "b"), "trained on 3 classes; this import has 2"),
        ("coop", Writer().coop(), ("cat", "cow", "owl"), "2 of 3 class texts differ from training, the first is 'cow'"),
        ("ivlp", {"prompt_learner.ctx": torch.ones(4, WIDTH)}, CLASSES, "contains no CLIP weights"),
        ("coop", Writer().coop(), CLASSES, "uses GELU, so predictions differ"),
    ],
)
def test_unverifiable_facts_are_noted(attempt, method, state, classes, note):
    assert any(note in line for line in attempt(state, method, classes=classes)["notes"])


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "ivlp", "promptsrc"])
def test_a_complete_checkpoint_for_its_own_classes_has_no_notes_but_the_activation(attempt, method):
    notes = attempt(getattr(Writer(), method)(), method)["notes"]
    assert [note for note in notes if "QuickGELU" not in note] == []
