"""Evaluation: lm-eval in an engine's process, with every setting that moves a score, and the samples behind it.

    Request     one model on one task, and what is set on purpose
    evaluate    runs requests on their models, one after another
    Evaluation  a score with its standard error, settings, versions, and the file of its samples

The judge is lm-eval's own `simple_evaluate` with its own vLLM or HF model class; labkit renders the task files, chooses
nothing silently, and keeps what came out.
"""

from labkit.evaluate.run import (
    Evaluation,
    Request,
    Sample,
    evaluate,
    evaluate_loaded,
    load_evaluation,
    load_samples,
    save_evaluation,
)
from labkit.evaluate.tasks import hub_source, sentence_splitter, task_files
