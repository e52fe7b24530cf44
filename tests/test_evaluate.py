"""Evaluations by lm-eval in an engine's process: scores, samples, settings, BOS, local data, and what failures say."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from labkit import hardware, tiny
from labkit.engine import number_type
from labkit.errors import CheckpointError, DataError, ProcessFailed, UsageError
from labkit.evaluate import Evaluation, Request, Sample, evaluate, load_evaluation, load_samples
from labkit.evaluate.run import standard_error
from labkit.evaluate.tasks import TRAINED, sentence_splitter, split_wikitext, task_files
from labkit.profiles import TINY, WORKBENCH, Task
from labkit.tiny import corpus
from tests.models import make_context, make_model

PROBLEMS, STORIES = TINY.tasks
GSM8K, IFEVAL, WIKITEXT = WORKBENCH.tasks
REAL = Path(__file__).parents[2] / "shared" / "data"
TICKS: list[tuple[int, str]] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def found(folder) -> dict[str, Evaluation]:
    """Every evaluation that the tests below read, made by one call."""
    from safetensors.torch import load_file, save_file

    first, second = folder / "bf16", folder / "coarse"
    for checkpoint in (first, second):
        checkpoint.mkdir()
        tiny.materialize(checkpoint, k=1.0)
    weights = load_file(second / "model.safetensors")
    coarse = {name: _round(w) if "layers" in name and w.ndim == 2 else w for name, w in weights.items()}
    save_file(coarse, second / "model.safetensors", metadata={"format": "pt"})
    requests = {
        "problems": Request("bf16", first, PROBLEMS, limit=40),
        "coarse problems": Request("coarse", second, PROBLEMS, limit=40),
        "stories": Request("bf16", first, STORIES, limit=20),
        "coarse stories": Request("coarse", second, STORIES, limit=20),
        "few-shot": Request("bf16", first, PROBLEMS, limit=8, num_fewshot=2),
        "doubled": Request("bf16", first, PROBLEMS, limit=8, double_bos=True, purpose="trap"),
        "doubled stories": Request("bf16", first, STORIES, limit=20, double_bos=True, purpose="trap"),
        "untemplated": Request("bf16", first, PROBLEMS, limit=40, chat_template=False, purpose="trap"),
        "hf stories": Request("bf16", first, STORIES, limit=20, backend="hf"),
        "hf problems": Request("bf16", first, PROBLEMS, limit=8, backend="hf"),
    }
    log = folder / "evaluation.log"
    made = evaluate(list(requests.values()), make_context(folder), log=log, on_tick=lambda *tick: TICKS.append(tick))
    return dict(zip(requests, made, strict=True))


def _round(tensor):
    """Five levels, one scale a row: enough to lose something."""
    scale = tensor.abs().amax(dim=1, keepdim=True) / 2
    return (tensor / scale).round() * scale


def test_results_come_in_the_order_of_the_requests_with_the_start_of_an_engine_counted_once(found):
    asked = [(e.request.variant, e.request.task.name, e.n) for e in found.values()]
    assert asked[:3] == [("bf16", "tiny_problems", 40), ("coarse", "tiny_problems", 40), ("bf16", "tiny_stories", 20)]
    assert [done for done, _ in TICKS] == list(range(11))
    assert {"bf16: tiny_problems", "coarse: tiny_stories", "done"} <= {doing for _, doing in TICKS}
    for side in ("", "coarse "):
        first, second = found[f"{side}problems"], found[f"{side}stories"]
        assert first.engine_start_seconds > 10 * second.engine_start_seconds


def test_the_score_is_the_mean_of_its_samples_and_its_error_lm_evals_own(found):
    e = found["problems"]
    assert e.value == pytest.approx(sum(s.score for s in load_samples(e.samples)) / 40)
    assert e.value == e.metrics["exact_match,strict-match"] > 0.5
    for name in ("problems", "coarse problems", "few-shot"):
        assert found[name].stderr == pytest.approx(found[name].metrics["exact_match_stderr,strict-match"])


def test_samples_hold_what_was_asked_expected_and_answered(found, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "bf16")
    samples = load_samples(found["problems"].samples)
    for sample, problem in zip(samples, corpus.problems("test", 40), strict=True):
        asked = [{"role": "user", "content": corpus.prompt(problem.question)}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert sample.prompt_sha256 == hashlib.sha256(prompt.encode()).hexdigest()
        assert sample.target == f" {problem.answer}"
        assert (sample.score == 1.0) == (sample.prediction == str(problem.result))
    assert any("####" in sample.response for sample in samples)


def test_perplexity_is_the_weighted_mean_of_log_likelihoods_per_word(found):
    e = found["stories"]
    samples = load_samples(e.samples)
    mean = sum(s.score * s.weight for s in samples) / sum(s.weight for s in samples)
    assert 1 < e.value < 3
    assert e.value == pytest.approx(math.exp(-mean))
    assert [s.weight for s in samples] == [len(story.text.split()) for story in corpus.stories("test", 20)]
    assert 0 < e.stderr < 0.2
    assert found["hf stories"].value == pytest.approx(e.value, rel=0.02), "vLLM and transformers agree"


def test_every_setting_that_moves_a_score_is_recorded(found):
    e = found["problems"]
    expected = {"task": "tiny_problems", "filter": "strict-match", "backend": "vllm", "num_fewshot": 0, "limit": 40}
    expected |= {"seed": 0, "add_bos": False, "double_bos": False, "max_model_len": 2048}
    assert expected.items() <= e.settings.items()
    assert e.settings["dtype"] == number_type(TINY.engine)
    assert {"max_gen_toks": 64, "until": ["<|end|>", "Question:"]}.items() <= e.settings["generation"].items()
    assert len(e.settings["chat_template"]) == 12
    assert e.settings["data"].startswith("generated:")
    assert found["hf stories"].settings["backend"] == "hf"
    assert e.versions == hardware.stack_versions()
    assert e.cache_tokens > 2048
    for each in found.values():
        assert load_evaluation(each.samples) == each, "another lab finds it all"
        saved = each.samples.with_suffix(".json")
        saved.write_text(saved.read_text().replace('"request": {', '"request": {"add_bos": null,', 1))
        assert load_evaluation(each.samples) == each, "also where an older labkit saved more"


def test_one_bos_stands_before_a_prompt_and_what_is_wrong_on_purpose_costs_score(found):
    counts = {name: e.settings["bos_at_start"] for name, e in found.items()}
    assert counts == {name: 2 if name.startswith("doubled") else 1 for name in found}
    assert found["doubled stories"].value > 1.05 * found["stories"].value
    plain = found["untemplated"]
    assert (plain.settings["chat_template"], plain.settings["add_bos"]) == ("none", True)
    assert plain.value < found["problems"].value - 0.2, "without its chat template the model scores much lower"


def test_few_shot_examples_make_other_prompts_and_never_come_from_the_test_rows(found, folder):
    zero, few = (load_samples(found[name].samples) for name in ("problems", "few-shot"))
    assert all(a.prompt_sha256 != b.prompt_sha256 for a, b in zip(zero, few, strict=False))
    rows = [path.read_text() for path in (folder / "workspace" / "cache" / "evaluation").glob("tiny_problems-*.jsonl")]
    test, train = ({json.loads(line)["question"] for line in text.splitlines()} for text in rows)
    assert not test & train


def test_the_standard_error_of_a_ratio_is_that_of_resampled_rows():
    import numpy as np

    rng = np.random.default_rng(5)
    rows = [Sample(i, float(rng.random()), float(rng.integers(1, 4)), "", "", "") for i in range(300)]
    score, weight = (np.array([getattr(row, name) for row in rows]) for name in ("score", "weight"))
    drawn = rng.integers(0, 300, (2000, 300))
    means = (score * weight)[drawn].sum(axis=1) / weight[drawn].sum(axis=1)
    assert standard_error(rows, "accuracy") == pytest.approx(np.std(means), rel=0.1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"backend": "gguf"}, "backend is 'gguf'"),
        ({"limit": 0}, "limit is 0"),
        ({"task": STORIES, "chat_template": True}, "through a chat template"),
        ({"double_bos": True, "backend": "hf"}, "double_bos with backend='hf'"),
        ({"double_bos": True, "chat_template": False}, "chat_template=False"),
        ({"backend": "hf", "kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8' with the hf backend"),
    ],
)
def test_a_request_that_lm_eval_cannot_have_is_refused(fields, told):
    with pytest.raises(UsageError, match=told):
        Request(**{"variant": "bf16", "checkpoint": Path("x"), "task": PROBLEMS, **fields})


def test_the_command_line_has_what_a_request_overrides(tmp_path):
    request = Request("bf16", make_model(tmp_path), PROBLEMS, num_fewshot=4, kv_cache_dtype="fp8_e5m2")
    command = request.command_line(TINY.engine)
    assert all(word in command for word in ("kv_cache_dtype=fp8_e5m2", "--num_fewshot 4", "--fewshot_as_multiturn"))


# --- what fails is told


def test_a_folder_without_a_model_is_refused_before_an_engine_starts(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        evaluate([Request("bf16", tmp_path, PROBLEMS)], make_context(tmp_path), log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("task", "backend", "told"), [(STORIES, "vllm", "SafetensorError"), (PROBLEMS, "hf", "without one")]
)
def test_what_the_engine_refuses_is_told_in_its_own_words(tmp_path, task, backend, told):
    model = make_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    if backend == "vllm":
        (model / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ProcessFailed, match=told) as error:
        evaluate([Request("bf16", model, task, backend, limit=2)], make_context(tmp_path), log=tmp_path / "log")
    assert "Traceback" not in str(error.value)


@pytest.mark.long
def test_on_a_gpu_models_get_a_process_each_and_no_longer_sequences_than_they_know(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "engine_build", lambda: "cuda")  # in this process; theirs are a CPU's
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    short = make_model(tmp_path / "short", max_position_embeddings=512)
    long = make_model(tmp_path / "long", "qwen2", max_position_embeddings=4096)
    requests = [Request("short", short, STORIES, limit=3), Request("long", long, STORIES, limit=3)]
    made = evaluate(requests, make_context(tmp_path), log=tmp_path / "log")
    assert [(e.settings["max_model_len"], e.n) for e in made] == [(512, 3), (2048, 3)]


# --- rows

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
    assert [page.split("\n")[0] for page in pages] == [" = First Article =", " = Second ( film ) ="]
    assert "formula" in pages[0]
    assert split_wikitext("no heading\nat all") == ["no heading\nat all"]
    assert split_wikitext("preface\n\n = Title = \n\n text")[0] == "preface"


def test_local_rows_are_used_as_they_are_or_converted_to_json_lines(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n')
    pa.parquet.write_table(pa.table({"question": ["p"], "answer": ["#### 2"]}), tmp_path / "gsm8k_train.parquet")
    (tmp_path / "wikitext.txt").write_text(TEXT)
    context = replace(make_context(tmp_path), data=str(tmp_path))
    found = task_files(GSM8K, context)
    assert found.data_files["test"] == str(tmp_path / "gsm8k_test.jsonl")
    assert json.loads(Path(found.data_files["train"]).read_text()) == {"question": "p", "answer": "#### 2"}
    assert found.data.startswith("local:")
    pages = Path(task_files(WIKITEXT, context).data_files["test"]).read_text().splitlines()
    assert [sorted(json.loads(page)) for page in pages] == [["page"], ["page"]]


def test_a_missing_local_file_is_an_error_and_nothing_comes_from_the_hub_instead(tmp_path):
    context = replace(make_context(tmp_path), data=str(tmp_path))
    with pytest.raises(DataError, match="no file for the train rows of ifeval"):
        task_files(IFEVAL, context)
    with pytest.raises(DataError, match="names no local files"):
        task_files(Task("arc_easy", "accuracy", "acc"), context)
    assert task_files(IFEVAL, make_context(tmp_path)).data == "hub"


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")
def test_real_gsm8k_ifeval_and_wikitext_rows_run_through_lm_evals_own_definitions(tmp_path):
    model = make_model(tmp_path / "model")
    requests = [Request("bf16", model, task, limit=3) for task in (GSM8K, IFEVAL, WIKITEXT)]
    context = replace(make_context(tmp_path), profile=WORKBENCH, data=str(REAL))
    gsm8k, ifeval, wikitext = made = evaluate(requests, context, log=tmp_path / "log")
    first = json.loads((REAL / "gsm8k_test.jsonl").read_text().split("\n")[0])
    assert load_samples(gsm8k.samples)[0].target == first["answer"]
    assert (gsm8k.settings["num_fewshot"], gsm8k.settings["task_version"]) == (5, 3.0)
    assert 0 <= ifeval.value <= 1
    instructions = [json.loads(line) for line in (REAL / "ifeval_input_data.jsonl").read_text().splitlines()[:3]]
    assert [s.weight for s in load_samples(ifeval.samples)] == [len(row["instruction_id_list"]) for row in instructions]
    assert ifeval.settings["sentence_splitter"] == "trained on generated English"
    text = (REAL / "wikitext2_test.txt").read_text(encoding="utf-8")
    assert len(split_wikitext(text)) == 60
    assert " ".join(split_wikitext(text)).split() == text.split()
    assert wikitext.value > 1
    assert all(s.weight > 500 for s in load_samples(wikitext.samples))
    assert {e.settings["data"].split(":")[0] for e in made} == {"local"}


def test_a_sentence_splitter_that_could_not_be_written_whole_is_not_there(tmp_path, monkeypatch):
    """NLTK takes any folder of that name for one, so half of it would count sentences wrongly, and as NLTK's own."""
    from nltk.tokenize import punkt

    monkeypatch.setattr("labkit.evaluate.tasks.ENGLISH_STORIES", 50)
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
