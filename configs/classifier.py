"""Recipes of the small classifiers that classify samples and provide features, by the name of the data.

The classifiers in classifiers/ were trained with these recipes; a missing one is trained on first use.
"""

from jgen.metrics.classifier import Recipe

RECIPES = {
    "digits": Recipe(epochs=40, batch_size=64, shift=1),
    "fonts": Recipe(widths=(16, 32), epochs=2, shift=1),
    "cifar10": Recipe(widths=(64, 128, 256), features=256, epochs=20),
}


def get_recipe(data: str) -> Recipe:
    return RECIPES.get(data, Recipe())
