"""lm-eval's own options of `selfadapt eval` mean what they mean to lm-eval: the base has the samples of its `hf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager

from experts import ExpertLibrary

SAID = ("arguments", "resps", "doc_id", "filtered_resps")


@pytest.fixture
def asked(run: Any, library: ExpertLibrary, task_folder: Path) -> Any:
    """`asked(*options)` → lm-eval's result dictionary of the plain base."""

    def ask(*options: object, tasks: str = "choice,writing", model: bool = True) -> dict[str, Any]:
        own = ("--model", library.base) if model else ()
        code, out, err = run(
            "eval", "--tasks", tasks, "--include-path", task_folder, *own, "--log-samples", "--json", *options
        )
        assert code == 0, err
        return json.loads(out)

    return ask


@pytest.fixture
def hf(library: ExpertLibrary, task_folder: Path) -> Any:
    """`hf(…)` → what lm-eval has of its own model on the same checkpoint."""

    def evaluate(*tasks: str, **options: Any) -> dict[str, Any]:
        given = {"model_args": {"pretrained": library.base}, "device": "cpu", **options}
        manager = TaskManager(include_path=task_folder, include_defaults=False)
        return json.loads(
            json.dumps(
                lm_eval.simple_evaluate("hf", tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **given),
                default=str,
            )
        )

    return evaluate


def said(results: dict[str, Any]) -> dict[str, list[list[Any]]]:
    return {task: [[sample[key] for key in SAID] for sample in rows] for task, rows in results["samples"].items()}


@pytest.mark.long
def test_samples_are_the_documents_that_are_asked_for(asked: Any, hf: Any, tmp_path: Path) -> None:
    chosen = {"choice": [7, 2], "writing": [0]}
    wanted = hf("choice", "writing", samples={"choice": [2, 7], "writing": [0]})
    (tmp_path / "samples.json").write_text(json.dumps(chosen))
    for given in (json.dumps(chosen), tmp_path / "samples.json"):
        results = asked("--samples", given)
        assert said(results) == said(wanted)
        assert [sample["doc_id"] for sample in results["samples"]["choice"]] == [2, 7]


@pytest.mark.long
def test_generation_arguments_go_over_the_tasks_own(asked: Any, hf: Any) -> None:
    wanted = hf("writing", limit=3, gen_kwargs={"max_gen_toks": 4, "until": ["e", "o"]})
    for given in (["max_gen_toks=4,until=['e','o']"], ["max_gen_toks=4", 'until=["e", "o"]']):
        assert said(asked("--limit", 3, "--gen-kwargs", *given, tasks="writing")) == said(wanted)
    given = json.dumps({"max_gen_toks": 4, "until": ["e", "o"]})
    assert said(asked("--limit", 3, "--gen_kwargs", given, tasks="writing")) == said(wanted)
    plain = asked("--limit", 3, tasks="writing")
    assert said(plain) != said(wanted)
    drawn = ("--limit", 3, "--gen-kwargs", "do_sample=true,temperature=2.0", "--seed")
    first, again, other = (asked(*drawn, seed, tasks="writing") for seed in (1, 1, 2))
    assert said(first) == said(again) != said(other)


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.long
def test_chats_have_the_systems_message_and_the_examples_turns(
    asked: Any, hf: Any, task_folder: Path, multiturn: bool
) -> None:
    own = yaml.safe_load((task_folder / "writing.yaml").read_text())
    own["metadata"] = {"version": 1}
    (task_folder / "writing.yaml").write_text(yaml.safe_dump(own | {"fewshot_split": "test"}))
    options: dict[str, Any] = {"apply_chat_template": True, "system_instruction": "Be brief.", "num_fewshot": 2}
    wanted = hf("writing", limit=3, fewshot_as_multiturn=multiturn, **options)
    given: list[object] = ["--limit", 3, "--apply-chat-template", "--system-instruction", "Be brief."]
    given += ["--num-fewshot", 2]
    got = asked(*given, *([] if multiturn else ["--fewshot-as-multiturn", "false"]), tasks="writing")
    assert said(got) == said(wanted)
    context = got["samples"]["writing"][0]["arguments"][0][0]
    assert context.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert context.count("<|im_start|>user") == (3 if multiturn else 1)
    if multiturn:
        assert said(asked(*given, "--fewshot-as-multiturn", tasks="writing")) == said(wanted)


def test_an_instruction_stands_before_plain_contexts_too(asked: Any, hf: Any) -> None:
    wanted = hf("choice", limit=2, system_instruction="Be brief.")
    got = asked("--limit", 2, "--system-instruction", "Be brief.", tasks="choice")
    assert said(got) == said(wanted)


@pytest.mark.long
def test_the_models_arguments_are_lm_evals(asked: Any, library: ExpertLibrary) -> None:
    wanted = asked("--limit", 2)
    got = asked("--limit", 2, "--model-args", f"pretrained={library.base},dtype=auto", "max_length=200", model=False)
    assert said(got) == said(wanted)
    assert got["config"]["model_args"]["max_length"] == 200
    got = asked("--limit", 2, "--device", "cpu", "--dtype", "bfloat16", "--model_args", "attn_implementation=eager")
    assert got["config"]["device"] == "cpu"
    assert got["config"]["model_dtype"] == "torch.bfloat16"
    assert said(got) != said(wanted)


@pytest.mark.long
def test_responses_are_kept_for_the_next_time(asked: Any, library: ExpertLibrary, tmp_path: Path) -> None:
    kept = ("--limit", 3, "--use-cache", tmp_path / "kept" / "responses")
    wanted = asked("--limit", 3)
    assert said(asked(*kept)) == said(wanted)
    (file,) = (tmp_path / "kept").glob("responses*.db")
    size = file.stat().st_mtime_ns
    assert said(asked(*kept)) == said(wanted)
    assert file.stat().st_mtime_ns == size  # nothing was written anew
    expert = asked(*kept, "--library", library.folder, "--dispatch", "b")
    assert said(expert) != said(wanted)  # the cache knows who answered


def test_programs_of_the_models_run_only_if_that_is_said(
    run: Any, asked: Any, library: ExpertLibrary, task_folder: Path
) -> None:
    own = yaml.safe_load((task_folder / "writing.yaml").read_text())
    (task_folder / "unsafe.yaml").write_text(yaml.safe_dump(own | {"task": "unsafe", "unsafe_code": True}))
    code, out, err = run("eval", "--tasks", "unsafe", "--include-path", task_folder, "--model", library.base)
    assert (code, out) == (1, "")
    assert "give --confirm-run-unsafe-code" in err.splitlines()[-1]
    assert asked("--limit", 2, "--confirm-run-unsafe-code", tasks="unsafe")["results"]["unsafe"]


def test_a_mistake_is_one_line(run: Any, library: ExpertLibrary, task_folder: Path, tmp_path: Path) -> None:
    def error(*args: object) -> str:
        own = ("--tasks", "choice,writing", "--include-path", task_folder, "--model", library.base)
        code, out, err = run("eval", *own, *args)
        assert (code, out) == (1, "")
        assert "Traceback" not in err
        return err.split("error: ")[-1].splitlines()[0]  # behind a progress bar there is no new line

    assert "--limit and --samples both say" in error("--limit", 2, "--samples", '{"choice": [1]}')
    assert "unknown task in the samples 'chioce'; did you mean 'choice'" in error("--samples", '{"chioce": [1]}')
    assert "document 99 of the task 'choice', but its last one is 17" in error("--samples", '{"choice": [99]}')
    for given in ('{"choice": []}', '{"choice": 3}', '{"choice": [-1]}', '{"choice": [true]}'):
        assert "--samples must list the documents" in error("--samples", given)
    assert "--samples is not JSON" in error("--samples", '{"choice": [1')
    assert "cannot read" in error("--samples", tmp_path / "gone.json")
    assert "--model and pretrained in --model-args set the same thing" in error("--model-args", "pretrained=x")
    assert "--dtype and dtype in --model-args" in error("--dtype", "float32", "--model-args", "dtype=auto")
    assert "unknown argument of the lm-eval model selfadapt: 'peft'" in error("--model-args", "peft=x")
    assert "--model-args: expected `key=value`" in error("--model-args", "revision")
    for wrong in ("top_p=3", "top_k=-1", "min_p=2.0", "repetition_penalty=0", "temperature=hot", "temperature=-1"):
        assert f"gen_kwargs: {wrong.partition('=')[0]} must be" in error("--gen-kwargs", f"do_sample=true,{wrong}")
    chats = ("--apply-chat-template", "--chat-template-kwargs")
    assert "does not know the argument 'nosuch'" in error(*chats, "nosuch", "False")
    assert "messages is always set" in error(*chats, "messages", "False")
    assert "--gen-kwargs: Invalid JSON" in error("--gen-kwargs", '{"until": ')
    assert "--batch-size and batch_size in --model-args" in error("--batch-size", 2, "--model-args", "batch_size=4")
    for wrong in ("max_length=0", "max_length=x", "prefix_token_id=x", "max_batch_size=x", "batch_size=0"):
        assert f"{wrong.partition('=')[0]} must be a whole number" in error("--model-args", wrong)
    for wrong in ("add_bos_token", "truncation", "logits_cache"):
        assert f"{wrong} must be true or false, not 'x'" in error("--model-args", f"{wrong}=x")
    assert "unknown dtype 'float7'" in error("--model-args", "softmax_dtype=float7")
    for wrong in ("num_beams=0", "max_gen_toks=9999"):
        assert "cannot generate with" in error("--gen-kwargs", wrong, "--limit", 1)
    assert "unknown dtype 'float7'" in error("--dtype", "float7")
    assert "device 'cdua' cannot be used" in error("--device", "cdua")
    assert "is for chats: give --apply-chat-template too" in error("--fewshot-as-multiturn")
    assert "documents to take examples from, not 99: ask for fewer" in error("--num-fewshot", 99)
    assert "must be true or false, not 'perhaps'" in error("--fewshot-as-multiturn", "perhaps", "--apply-chat-template")
    assert "temprature" in error("--gen-kwargs", "do_sample=true,temprature=1", "--limit", 1)


def test_a_batch_size_is_looked_for_no_more_often_than_there_are_requests(asked: Any) -> None:
    few = asked("--limit", 1, "--batch-size", "auto:9", tasks="choice")
    assert few["results"] == asked("--limit", 1, tasks="choice")["results"]
