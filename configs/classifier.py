"""Recipes of the small classifiers that read samples and lend their features, by the name of the data.

Those in classifiers/ were trained by them; data and recipes that have none there are trained on first use.
"""

from jgen.metrics.classifier import Recipe

RECIPES = {
    "digits": Recipe(epochs=40, batch_size=64, shift=1),
    "fonts": Recipe(widths=(16, 32), epochs=2, shift=1),
    "cifar10": Recipe(widths=(64, 128, 256), features=256, epochs=20),
}


def get_recipe(data: str) -> Recipe:
    return RECIPES.get(data, Recipe())
