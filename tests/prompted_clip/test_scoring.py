"""Class scores of mixed batches: each row's as if alone, in a number of operations that does not grow with domains."""

import pytest
import torch

from prompted_clip.heads import ClassHead, ImageFeatures, Projector, TwoLayers
from prompted_clip.scoring import Scorer
from prompted_clip.stack import PromptStack
from prompted_clip.transfers import map_tensors
from tests.fakecuda.simulation import simulated_cuda
from tests.tiny import tiny_backbone

WIDTH = 16
KINDS = ("plain", "class head of unit features", "class head", "projector")


def random_stack(seed, kind):
    """A stack with 2 to 6 classes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    n_classes = 2 + seed % 5
    head = None
    if kind == "projector":
        head = Projector(TwoLayers(normal(8, WIDTH), normal(8), normal(WIDTH, 8), normal(WIDTH)))
    elif kind != "plain":
        head = ClassHead(
            normal(n_classes, WIDTH), normal(n_classes), 0.1 + seed % 7 / 10, kind.endswith("unit features")
        )
    return PromptStack(
        domain=f"domain-{seed}",
        digest=None,
        class_names=tuple(f"class {index}" for index in range(n_classes)),
        class_texts=(),
        templates=("{}",),
        logit_scale=20.0 + seed,
        text_features=torch.nn.functional.normalize(normal(n_classes, WIDTH), dim=-1),
        head=head,
        temperature=0.5 + seed % 3,
    )


def random_features(n_rows):
    embeddings_BE = torch.randn(n_rows, WIDTH, generator=torch.Generator().manual_seed(0))
    return ImageFeatures(embeddings_BE, torch.nn.functional.normalize(embeddings_BE, dim=-1))


def exact_probabilities(embedding_E, stack):
    """In float64, from the definitions."""
    v_E = embedding_E.double()
    f_E = v_E / v_E.norm()
    text_K = stack.text_features.double() @ f_E
    head = stack.head
    logits_K = stack.logit_scale * text_K
    if isinstance(head, ClassHead):
        own_K = head.weight_KE.double() @ (f_E if head.reads_unit else v_E) + head.bias_K.double()
        logits_K = (1 - head.share) * logits_K + head.share * own_K
    elif isinstance(head, Projector):
        layers = map_tensors(head.layers, torch.Tensor.double)
        projected_E = layers(v_E.unsqueeze(0))[0]
        logits_K = stack.logit_scale * (stack.text_features.double() @ (projected_E / projected_E.norm()))
    return (logits_K / stack.temperature).softmax(dim=-1)


def scorer():
    return Scorer(tiny_backbone(), max_text_rows=8, on_progress=lambda: None)


@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS[1:2], KINDS[1:3], KINDS], ids=" and ".join)
def test_every_row_of_a_mixed_batch_has_its_own_stacks_probabilities(kinds):
    stacks = [random_stack(seed, kinds[seed % len(kinds)]) for seed in range(12)]
    rows = [stacks[row * 7 % 12] for row in range(30)]
    images = random_features(30)
    mixed_BK = scorer().logits(images, rows).softmax(dim=-1)
    for row, stack in enumerate(rows):
        n_classes = len(stack.class_names)
        (alone_K,) = scorer().logits(images.of(torch.tensor([row])), [stack]).softmax(dim=-1)
        torch.testing.assert_close(mixed_BK[row, :n_classes], alone_K, rtol=0, atol=1e-6)
        exact_K = exact_probabilities(images.embeddings_BE[row], stack)
        torch.testing.assert_close(mixed_BK[row, :n_classes].double(), exact_K, rtol=0, atol=1e-5)
        assert not mixed_BK[row, n_classes:].any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the launches of the simulated device")
@pytest.mark.parametrize("kind", KINDS[:3])
def test_64_domains_take_as_many_launches_as_two(kind):
    with simulated_cuda() as simulated:
        images = map_tensors(random_features(64), lambda tensor: tensor.to("cuda"))
        n_launches = []
        for n_domains in (2, 64):
            stacks = [random_stack(seed, kind).to(torch.device("cuda")) for seed in range(n_domains)]
            simulated.launches.clear()
            logits_BK = scorer().logits(images, [stacks[row % n_domains] for row in range(64)])
            n_launches.append(simulated.launches.total())
        assert n_launches[0] == n_launches[1] < 25
        assert torch.isfinite(logits_BK[:, :2]).all().item()
    assert simulated.violations == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the simulated device")
def test_stacks_with_all_kinds_of_heads_score_on_cuda_as_on_the_cpu():
    stacks = [random_stack(seed, KINDS[seed % 4]) for seed in range(8)]
    expected_BK = scorer().logits(random_features(8), stacks)
    with simulated_cuda(eagerness=0.3) as simulated:
        images = map_tensors(random_features(8), lambda tensor: tensor.to("cuda"))
        found_BK = scorer().logits(images, [stack.to(torch.device("cuda")) for stack in stacks])
        torch.testing.assert_close(found_BK.cpu(), expected_BK, rtol=1e-5, atol=1e-4)
    assert simulated.violations == []
