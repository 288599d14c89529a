"""An evaluation as one page that opens from the disk."""

from ebm_lightning.report.evaluation import evaluation_sections
from ebm_lightning.report.folder import results_folder
from ebm_lightning.report.page import Better, Cell, Picture, Section, Table, compare, page

__all__ = ["Better", "Cell", "Picture", "Section", "Table", "compare", "evaluation_sections", "page", "results_folder"]
