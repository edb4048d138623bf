"""Learning: rules that change weights."""

from pragnosia.learning.rule import RULES, LearningRule, Lesson, learning_rule

__all__ = ["RULES", "LearningRule", "Lesson", "learning_rule"]
