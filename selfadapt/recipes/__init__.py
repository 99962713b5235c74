"""Recipes: a file says what is trained, and how. There are recipes for experts and for the Text-to-LoRA trainings.

`configuration` is the one mechanism: it finds and reads files, and makes them into dataclasses that say what they may
hold.
"""

from selfadapt.recipes.classification import Classification
from selfadapt.recipes.configuration import configs_folder, find_recipe, override
from selfadapt.recipes.expert import Recipe, read_recipe, train_recipe

__all__ = [
    "Classification",
    "Recipe",
    "configs_folder",
    "find_recipe",
    "override",
    "read_recipe",
    "train_recipe",
]
