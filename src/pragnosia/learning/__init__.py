"""Learning: rules that change weights."""

from __future__ import annotations

from pragnosia.learning.rule import RULES, SPIKING_RULES, LearningRule, Lesson, learning_rule

__all__ = ["RULES", "SPIKING_RULES", "LearningRule", "Lesson", "learning_rule"]
