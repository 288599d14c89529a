"""The report of an evaluation: one HTML page that contains its pictures, and the same numbers as text."""

from ebm_lightning.evaluation.report.folder import remove_if_empty, results_folder
from ebm_lightning.evaluation.report.page import Cell, Picture, Section, Table, page
from ebm_lightning.evaluation.report.ranking import Comparison
from ebm_lightning.evaluation.report.sections import evaluation_sections
from ebm_lightning.evaluation.report.text import comparison_table, results_table, verdict_text
from ebm_lightning.evaluation.report.verdict import Verdict, verdicts

__all__ = [
    "Cell",
    "Comparison",
    "Picture",
    "Section",
    "Table",
    "Verdict",
    "comparison_table",
    "evaluation_sections",
    "page",
    "remove_if_empty",
    "results_folder",
    "results_table",
    "verdict_text",
    "verdicts",
]
