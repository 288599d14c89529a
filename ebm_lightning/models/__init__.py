"""Trained models that come with the package: ``ebm_lightning.load("digits")``."""

from typing import TYPE_CHECKING

from ebm_lightning._lazy import lazy_exports

if TYPE_CHECKING:
    from ebm_lightning.models.index import Shipped as Shipped, shipped_models as shipped_models
    from ebm_lightning.models.loading import load as load
    from ebm_lightning.models.table import models_table as models_table

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {"index": ("Shipped", "shipped_models"), "loading": ("load",), "table": ("models_table",)},
)
