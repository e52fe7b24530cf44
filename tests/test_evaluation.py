"""Evaluations by lm-eval in the engine child: scores, samples, settings, BOS, local data, and how failures are told."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from labkit import tiny
from labkit.compare import compare_evaluations
from labkit.engine import number_type
from labkit.errors import CheckpointError, DataError, ProcessFailed, UsageError
from labkit.evaluation import (
    Evaluation,
    Request,
    Sample,
    command_line,
    evaluate,
    load_evaluation,
    load_samples,
    split_wikitext,
    task_files,
)
from labkit.evaluation.child import without_waste
from labkit.evaluation.request import standard_error
from labkit.profiles import TINY, WORKBENCH, Task
from labkit.tiny import corpus
from labkit.workspace import Workspace
from tests.models import make_model

PROBLEMS, STORIES = TINY.tasks
GSM8K, IFEVAL, WIKITEXT = WORKBENCH.tasks
REAL = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def ticks():
    return []


@pytest.fixture(scope="module")
def found(folder, ticks) -> dict[str, Evaluation]:
    """Every evaluation that the tests below read, made by one call."""
    from safetensors.torch import load_file, save_file

    first, second = folder / "bf16", folder / "coarse"
    for checkpoint in (first, second):
        checkpoint.mkdir()
        tiny.materialize(checkpoint, k=1.0)
    weights = load_file(second / "model.safetensors")
    coarse = {
        name: _round(tensor) if "layers" in name and tensor.ndim == 2 else tensor for name, tensor in weights.items()
    }
    save_file(coarse, second / "model.safetensors", metadata={"format": "pt"})
    requests = {
        "problems": Request("bf16", first, PROBLEMS, limit=40),
        "coarse problems": Request("coarse", second, PROBLEMS, limit=40),
        "stories": Request("bf16", first, STORIES, limit=20),
        "coarse stories": Request("coarse", second, STORIES, limit=20),
        "few-shot": Request("bf16", first, replace(PROBLEMS, num_fewshot=2), limit=8),
        "doubled": Request("bf16", first, PROBLEMS, limit=8, double_bos=True, purpose="trap"),
        "doubled stories": Request("bf16", first, STORIES, limit=20, double_bos=True, purpose="trap"),
        "untemplated": Request("bf16", first, PROBLEMS, limit=40, chat_template=False, purpose="trap"),
        "hf stories": Request("bf16", first, STORIES, limit=20, backend="hf"),
        "hf problems": Request("bf16", first, PROBLEMS, limit=8, backend="hf"),
    }
    made = evaluate(
        list(requests.values()),
        workspace=Workspace(folder / "workspace"),
        engine=TINY.engine,
        offline=True,
        log=folder / "evaluation.log",
        on_tick=lambda *tick: ticks.append(tick),
    )
    return dict(zip(requests, made, strict=True))


def _round(tensor):
    """Five levels, one scale a row: enough to lose something."""
    scale = tensor.abs().amax(dim=1, keepdim=True) / 2
    return (tensor / scale).round() * scale


def test_results_come_in_the_order_of_the_requests(found):
    asked = [(e.request.variant, e.request.task.name, e.n) for e in found.values()]
    assert asked[:4] == [
        ("bf16", "tiny_problems", 40),
        ("coarse", "tiny_problems", 40),
        ("bf16", "tiny_stories", 20),
        ("coarse", "tiny_stories", 20),
    ]


def test_children_share_the_models_and_tell_how_far_they_are(found, folder, ticks):
    log = (folder / "evaluation.log").read_text()
    asked = [int(count) for count in re.findall(r"labkit: 1 of (\d+)", log)]
    assert sum(asked) == 10
    assert all(log.count(f"labkit: {count} of {count}") == 1 for count in asked)
    assert ticks[-1] == (10, 10, "done")
    assert [done for done, _, _ in ticks] == sorted(done for done, _, _ in ticks)
    assert {"bf16: tiny_problems", "coarse: tiny_stories"} <= set(re.findall(r"labkit: \d+ of \d+: (.+)", log))
    doing = {part for _, _, doing in ticks for part in doing.split(" and ")}
    assert {"bf16: tiny_problems", "coarse: tiny_problems"} <= doing  # an engine starts: no tick misses them


def test_an_engines_start_is_counted_for_the_request_that_it_was_started_for(found):
    assert found["problems"].engine_start_seconds > 10 * found["stories"].engine_start_seconds
    assert found["coarse problems"].engine_start_seconds > 10 * found["coarse stories"].engine_start_seconds


def test_the_embedded_model_solves_problems_and_its_score_is_the_mean_of_its_samples(found):
    e = found["problems"]
    samples = load_samples(e.samples)
    assert e.value == pytest.approx(sum(s.score for s in samples) / 40)
    assert e.value > 0.5
    assert e.metrics["exact_match,strict-match"] == e.value
    assert "exact_match,flexible-extract" in e.metrics


def test_the_standard_error_is_lm_evals_own_where_it_has_one(found):
    for name in ("problems", "coarse problems", "few-shot"):
        assert found[name].stderr == pytest.approx(found[name].metrics["exact_match_stderr,strict-match"])


def test_samples_hold_what_was_asked_expected_and_answered(found, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "bf16")
    samples = load_samples(found["problems"].samples)
    for sample, problem in zip(samples, corpus.problems("test", 40), strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": corpus.prompt(problem.question)}], tokenize=False, add_generation_prompt=True
        )
        assert sample.prompt_sha256 == hashlib.sha256(prompt.encode()).hexdigest()
        assert sample.target == f" {problem.answer}"
        assert (sample.score == 1.0) == (sample.prediction == str(problem.result))
    assert any("####" in sample.response for sample in samples)


def test_perplexity_is_the_weighted_mean_of_log_likelihoods_per_word(found):
    import math

    e = found["stories"]
    samples = load_samples(e.samples)
    mean = sum(s.score * s.weight for s in samples) / sum(s.weight for s in samples)
    assert e.value == pytest.approx(math.exp(-mean))
    assert [s.weight for s in samples] == [len(story.text.split()) for story in corpus.stories("test", 20)]
    assert 1 < e.value < 3
    assert 0 < e.stderr < 0.2


def test_vllm_and_hf_agree_on_perplexity_within_two_percent(found):
    assert found["hf stories"].value == pytest.approx(found["stories"].value, rel=0.02)
    assert found["hf stories"].settings["backend"] == "hf"


def test_every_setting_that_moves_a_score_is_recorded(found):
    settings = found["problems"].settings
    expected = {
        "task": "tiny_problems",
        "filter": "strict-match",
        "backend": "vllm",
        "num_fewshot": 0,
        "limit": 40,
        "seed": 0,
        "add_bos": False,
        "double_bos": False,
        "max_model_len": 2048,
        "dtype": number_type(TINY.engine),
    }
    assert {name: settings[name] for name in expected} == expected
    assert settings["generation"]["max_gen_toks"] == 64
    assert settings["generation"]["until"] == ["<|end|>", "Question:"]
    assert len(settings["chat_template"]) == 12
    assert settings["data"].startswith("generated:")
    assert found["problems"].versions["lm_eval"] == "0.4.13"
    assert found["problems"].versions["vllm"].startswith("0.32.0")


def test_one_bos_stands_before_a_prompt_unless_it_is_doubled_on_purpose(found):
    counts = {name: e.settings["bos_at_start"] for name, e in found.items()}
    assert {name for name, count in counts.items() if count == 2} == {"doubled", "doubled stories"}
    assert {count for name, count in counts.items() if "doubled" not in name} == {1}


def test_a_doubled_bos_costs_perplexity(found):
    assert found["doubled stories"].value > 1.05 * found["stories"].value


def test_without_its_chat_template_the_model_scores_much_lower(found):
    assert found["untemplated"].value < found["problems"].value - 0.2
    assert found["untemplated"].settings["chat_template"] == "none"
    assert found["untemplated"].settings["add_bos"] is True


def test_few_shot_examples_make_other_prompts_and_never_come_from_the_test_rows(found, folder):
    zero, few = (load_samples(found[name].samples) for name in ("problems", "few-shot"))
    assert all(a.prompt_sha256 != b.prompt_sha256 for a, b in zip(zero, few, strict=False))
    rows = [path.read_text() for path in (folder / "workspace" / "cache" / "evaluation").glob("tiny_problems-*.jsonl")]
    questions = [{json.loads(line)["question"] for line in text.splitlines()} for text in rows]
    assert len(questions) == 2
    assert not questions[0] & questions[1]


def test_lm_eval_compiles_a_template_once_and_stands_as_it_was_afterwards():
    from lm_eval import evaluator, utils

    before = utils.env.from_string, evaluator.add_env_info
    listed: dict[str, object] = {}

    def interrupted() -> None:
        with without_waste():
            assert utils.env.from_string("{{question}}") is utils.env.from_string("{{question}}")
            assert [utils.apply_template("{{question}}?", {"question": row}) for row in ("a", "b")] == ["a?", "b?"]
            evaluator.add_env_info(listed)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not listed
    assert (utils.env.from_string, evaluator.add_env_info) == before


def test_an_evaluation_can_be_loaded_by_another_lab(found):
    for e in found.values():
        assert load_evaluation(e.samples) == e


def test_evaluations_made_in_one_call_can_be_compared(found):
    problems = compare_evaluations(found["problems"], found["coarse problems"])
    assert problems.difference == pytest.approx(found["coarse problems"].value - found["problems"].value)
    stories = compare_evaluations(found["stories"], found["coarse stories"])
    assert stories.ratio == pytest.approx(found["stories"].value / found["coarse stories"].value)
    assert stories.ratio < 1
    with pytest.raises(UsageError, match=r"differ in .*chat_template"):
        compare_evaluations(found["problems"], found["untemplated"])


def test_the_standard_error_of_a_ratio_is_that_of_resampled_rows():
    import numpy as np

    rng = np.random.default_rng(5)
    rows = [Sample(i, float(rng.random()), float(rng.integers(1, 4)), "", "", "") for i in range(300)]
    means = []
    for _ in range(2000):
        drawn = rng.integers(0, 300, 300)
        score = np.array([r.score for r in rows])[drawn]
        weight = np.array([r.weight for r in rows])[drawn]
        means.append((score * weight).sum() / weight.sum())
    assert standard_error(rows, "accuracy") == pytest.approx(np.std(means), rel=0.1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"backend": "gguf"}, "backend is 'gguf'"),
        ({"limit": 0}, "limit is 0"),
        ({"task": STORIES, "chat_template": True}, "through a chat template"),
        ({"double_bos": True, "backend": "hf"}, "needs the vllm backend"),
        ({"double_bos": True, "chat_template": False}, "no BOS to double"),
        ({"double_bos": True, "add_bos": False}, "add_bos=False"),
        ({"backend": "hf", "kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8' with the hf backend"),
    ],
)
def test_a_request_that_lm_eval_cannot_have_is_refused(fields, told):
    with pytest.raises(UsageError, match=told):
        Request(**{"variant": "bf16", "checkpoint": Path("x"), "task": PROBLEMS, **fields})


def test_the_command_line_has_what_a_request_overrides():
    request = Request("bf16", Path("x"), PROBLEMS, num_fewshot=4, kv_cache_dtype="fp8_e5m2")
    command = command_line(request, TINY.engine)
    assert "kv_cache_dtype=fp8_e5m2" in command
    assert "--num_fewshot 4" in command
    assert "--fewshot_as_multiturn" in command
    assert "kv_cache_dtype" not in command_line(Request("bf16", Path("x"), PROBLEMS), TINY.engine)


def evaluated(request: Request, folder: Path, **options: object) -> Evaluation:
    """One evaluation with a log and a workspace in `folder`."""
    options = {"engine": TINY.engine, "offline": True, **options}
    (made,) = evaluate([request], workspace=Workspace(folder / "workspace"), log=folder / "log", **options)
    return made


def test_a_folder_without_a_model_is_refused_before_an_engine_starts(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json can't be read"):
        evaluated(Request("bf16", tmp_path, PROBLEMS), tmp_path)
    assert not (tmp_path / "log").exists()


def test_a_damaged_checkpoint_is_told_in_the_engines_own_words(tmp_path):
    model = make_model(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ProcessFailed) as told:
        evaluated(Request("bf16", model, STORIES, limit=2), tmp_path)
    assert "SafetensorError" in told.value.what
    assert "Traceback" not in str(told.value)


def test_a_model_without_a_chat_template_is_told(tmp_path):
    model = make_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ProcessFailed, match="has no chat template; evaluate it without one"):
        evaluated(Request("bf16", model, PROBLEMS, limit=2, backend="hf"), tmp_path)


@pytest.mark.long
def test_isolated_models_get_a_child_each_and_no_longer_sequences_than_they_know(tmp_path):
    short = make_model(tmp_path / "short", max_position_embeddings=512)
    long = make_model(tmp_path / "long", "qwen2", max_position_embeddings=4096)
    made = evaluate(
        [Request("short", short, STORIES, limit=3), Request("long", long, STORIES, limit=3)],
        workspace=Workspace(tmp_path / "workspace"),
        engine=TINY.engine,
        offline=True,
        log=tmp_path / "log",
        isolate=True,
    )
    assert [(e.request.variant, e.settings["max_model_len"], e.n) for e in made] == [
        ("short", 512, 3),
        ("long", 2048, 3),
    ]
    log = (tmp_path / "log").read_text()
    assert log.count("labkit: 1 of 2: short") == log.count("labkit: 1 of 1: long") == 1


TEXT = """
 = First Article =

 Some text .

 = = A Section = =

 where
 = 1 / s and k =
 is a formula .

 = Second ( film ) =

 More text .
"""


def test_wikitext_is_split_at_top_level_headings_only():
    pages = split_wikitext(TEXT)
    assert [page.split("\n")[0] for page in pages] == [" = First Article = ".rstrip(), " = Second ( film ) =".rstrip()]
    assert "formula" in pages[0]
    assert split_wikitext("no heading\nat all") == ["no heading\nat all"]
    assert split_wikitext("preface\n\n = Title = \n\n text")[0] == "preface"


def test_local_rows_are_used_as_they_are_or_converted_to_json_lines(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    data = tmp_path / "data"
    data.mkdir()
    (data / "gsm8k_test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n')
    pa.parquet.write_table(pa.table({"question": ["p"], "answer": ["#### 2"]}), data / "gsm8k_train.parquet")
    (data / "wikitext.txt").write_text(TEXT)
    found = task_files(GSM8K, tmp_path / "work", data=str(data))
    assert found.data_files["test"] == str(data / "gsm8k_test.jsonl")
    assert json.loads(Path(found.data_files["train"]).read_text()) == {"question": "p", "answer": "#### 2"}
    assert found.data.startswith("local:")
    pages = Path(task_files(WIKITEXT, tmp_path / "work", data=str(data)).data_files["test"]).read_text().splitlines()
    assert [sorted(json.loads(page)) for page in pages] == [["page"], ["page"]]


def test_a_missing_local_file_is_an_error_and_nothing_comes_from_the_hub_instead(tmp_path):
    with pytest.raises(DataError, match="no file for the train rows of ifeval"):
        task_files(IFEVAL, tmp_path / "work", data=str(tmp_path))
    with pytest.raises(DataError, match="names no local files"):
        task_files(Task("arc_easy", "accuracy", "acc"), tmp_path / "work", data=str(tmp_path))
    assert task_files(IFEVAL, tmp_path / "work").data == "hub"


@needs_real_data
def test_the_real_wikitext_file_has_sixty_documents_and_loses_no_word():
    text = (REAL / "wikitext2_test.txt").read_text(encoding="utf-8")
    pages = split_wikitext(text)
    assert len(pages) == 60
    assert " ".join(pages).split() == text.split()


@needs_real_data
def test_real_gsm8k_ifeval_and_wikitext_rows_run_through_lm_evals_own_definitions(tmp_path):
    model = make_model(tmp_path / "model")
    requests = [Request("bf16", model, task, limit=3) for task in (GSM8K, IFEVAL, WIKITEXT)]
    gsm8k, ifeval, wikitext = evaluate(
        requests,
        workspace=Workspace(tmp_path / "workspace"),
        engine=WORKBENCH.engine,
        offline=True,
        data=str(REAL),
        log=tmp_path / "log",
    )
    first = json.loads((REAL / "gsm8k_test.jsonl").read_text().split("\n")[0])
    assert load_samples(gsm8k.samples)[0].target == first["answer"]
    assert (gsm8k.settings["num_fewshot"], gsm8k.settings["task_version"]) == (5, 3.0)
    assert 0 <= ifeval.value <= 1
    assert [s.weight for s in load_samples(ifeval.samples)] == [
        len(json.loads(line)["instruction_id_list"])
        for line in (REAL / "ifeval_input_data.jsonl").read_text().splitlines()[:3]
    ]
    assert ifeval.settings["sentence_splitter"] == "trained on generated English"
    assert wikitext.value > 1
    assert all(s.weight > 500 for s in load_samples(wikitext.samples))
    assert {e.settings["data"].split(":")[0] for e in (gsm8k, ifeval, wikitext)} == {"local"}


def test_a_sentence_splitter_that_could_not_be_written_whole_is_not_there(tmp_path, monkeypatch):
    """NLTK takes any folder of that name for one, so half of it would count sentences wrongly, and as NLTK's own."""
    from nltk.tokenize import punkt

    from labkit.evaluation import sentence_splitter
    from labkit.evaluation.sentences import TRAINED

    monkeypatch.setattr("labkit.evaluation.sentences.ENGLISH_STORIES", 50)
    save, english = punkt.save_punkt_params, tmp_path / "tokenizers" / "punkt_tab" / "english"

    def full_disk(parameters, dir):
        save(parameters, dir)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(punkt, "save_punkt_params", full_disk)
    with pytest.raises(OSError, match="No space"):
        sentence_splitter(tmp_path, offline=True)
    assert list(english.parent.iterdir()) == []
    monkeypatch.setattr(punkt, "save_punkt_params", save)
    assert sentence_splitter(tmp_path, offline=True) == "trained on generated English"
    assert (english / TRAINED).exists()
