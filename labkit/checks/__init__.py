"""What each lab's result must satisfy: one call says what it looked at, what it found, and what to do if that is wrong.

Two kinds. An *invariant* holds for any model: a layer that should be FP8 is FP8, bytes are what arithmetic says, GPTQ
really ran. An *expectation* holds for the embedded model, whose story is known (plain INT8 collapses, SmoothQuant
recovers); for any other model, and in a run shortened by `limit`, the same check prints what was observed and never
fails. The functions here only judge; `Lab.check` prints the judgement and stops the lab.
"""

from labkit.checks.exercises import answer_is, choice_is
from labkit.checks.judging import Check, expectation, invariant
from labkit.checks.piped import as_good_as_alone, every_step_worked, is_green, is_red, judge_waits_for_all
from labkit.checks.published import card_is_backed, is_refused, is_whole_there, same_contents
from labkit.checks.quantized import (
    bytes_as_predicted,
    cache_is_calibrated,
    gptq_ran,
    layers_have_scheme,
    memory_came_back,
    reload_is_equal,
    same_tensors,
    server_accepts,
    values_are_finite,
)
from labkit.checks.scored import (
    all_answered,
    answers_alike,
    collapses,
    holds,
    less_is_better,
    outliers_found,
    rises_first,
    scores_are_whole,
    setting_matters,
)
from labkit.checks.served import (
    as_the_matrix_says,
    engines_were_measured,
    loads_are_whole,
    servers_are_gone,
    tokens_as_predicted,
)
from labkit.checks.simulated import bits_are_equal, grid_is_whole, is_repeated, never_grows

__all__ = [
    "Check",
    "all_answered",
    "answer_is",
    "answers_alike",
    "as_good_as_alone",
    "as_the_matrix_says",
    "bits_are_equal",
    "bytes_as_predicted",
    "cache_is_calibrated",
    "card_is_backed",
    "choice_is",
    "collapses",
    "engines_were_measured",
    "every_step_worked",
    "expectation",
    "gptq_ran",
    "grid_is_whole",
    "holds",
    "invariant",
    "is_green",
    "is_red",
    "is_refused",
    "is_repeated",
    "is_whole_there",
    "judge_waits_for_all",
    "layers_have_scheme",
    "less_is_better",
    "loads_are_whole",
    "memory_came_back",
    "never_grows",
    "outliers_found",
    "reload_is_equal",
    "rises_first",
    "same_contents",
    "same_tensors",
    "scores_are_whole",
    "server_accepts",
    "servers_are_gone",
    "setting_matters",
    "tokens_as_predicted",
    "values_are_finite",
]
