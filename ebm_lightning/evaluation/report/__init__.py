"""The report of an evaluation: one HTML page that contains its pictures."""

from ebm_lightning.evaluation.report.folder import results_folder
from ebm_lightning.evaluation.report.page import Better, Cell, Picture, Section, Table, compare, page
from ebm_lightning.evaluation.report.sections import evaluation_sections
from ebm_lightning.evaluation.report.text import comparison_table

__all__ = [
    "Better",
    "Cell",
    "Picture",
    "Section",
    "Table",
    "compare",
    "comparison_table",
    "evaluation_sections",
    "page",
    "results_folder",
]
