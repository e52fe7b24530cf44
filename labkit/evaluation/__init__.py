"""Evaluation: lm-eval in a supervised child, with every setting that moves a score, and the samples behind it.

    Request     one model on one task, and what is set on purpose
    evaluate    runs requests, several models in one child on the CPU, a child a model on a GPU
    Evaluation  a score with its standard error, settings, versions, and the file of its samples

The judge is lm-eval's own `simple_evaluate` with its own vLLM or HF model class; labkit renders the task files, chooses
nothing silently, and keeps what came out.
"""

from labkit.evaluation.command import command_line
from labkit.evaluation.loaded import evaluate_loaded
from labkit.evaluation.request import Evaluation, Request, Sample, load_evaluation, load_samples, save_evaluation
from labkit.evaluation.run import evaluate
from labkit.evaluation.sentences import sentence_splitter
from labkit.evaluation.tasks import TaskFiles, hub_source, split_wikitext, task_files

__all__ = [
    "Evaluation",
    "Request",
    "Sample",
    "TaskFiles",
    "command_line",
    "evaluate",
    "evaluate_loaded",
    "hub_source",
    "load_evaluation",
    "load_samples",
    "save_evaluation",
    "sentence_splitter",
    "split_wikitext",
    "task_files",
]
