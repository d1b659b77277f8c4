"""The plans of the pre-trained demo models."""

from typing import Final

from training.demo.pretrain import PretrainPlan

STUDENT_PLAN: Final = PretrainPlan(arch="demo-student", n_steps=4400, n_pictures=60_000, seed=1)
"""Clean images, from random weights."""

TEACHER_PLAN: Final = PretrainPlan(
    arch="demo-teacher", n_steps=1800, n_pictures=60_000, peak_lr=1e-3, n_cosine_steps=2400, augmented_share=0.6, seed=2
)
"""Grown from the student: three more vision blocks, other images, mostly augmented; stopped after three quarters of
the cosine schedule."""

SECOND_TEACHER_PLAN: Final = PretrainPlan(
    arch="demo-second-teacher",
    n_steps=600,
    n_pictures=20_000,
    batch_size=64,
    peak_lr=7e-4,
    n_cosine_steps=900,
    styled_share=0.8,
    seed=3,
)
"""Grown from the exported student: one more vision block, other images, mostly in synthesised styles, which the first
teacher did not see; stopped after two thirds of the cosine schedule."""
