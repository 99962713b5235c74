"""Recipes: how one file says what is trained, and how; an expert's, and what the text-to-LoRA trainings read.

`configuration` is the one mechanism: files are found, read, and made into dataclasses that say what may stand there.
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
