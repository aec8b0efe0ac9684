"""What reads what others wrote, and a small valid input for each."""

import contextlib
import dataclasses
import functools
import gzip
import io
import json
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import small
from etils import epath
from fuzzing import Files, Reader
from gguf_files import write_whole_model

import radit_jax
from radit_jax import ask, config, plan, show, train
from radit_jax.config import Folder
from radit_jax.data.artifacts import corpus, scores_file
from radit_jax.data.eval_tasks.registry import EVAL_TASKS
from radit_jax.data.finetuning.datasets import DATASETS, read_items
from radit_jax.data.readers import documents, questions
from radit_jax.data.sources import folder
from radit_jax.evaluation import systems
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.pretrained import decoder_config, hf_config, licences, tensor_files, vectors
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import load_model, save_model
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer
from radit_jax.runtime.storage import checkpoints
from radit_jax.runtime.storage.files import read_json
from radit_jax.runtime.storage.fingerprints import canonical
from radit_jax.runtime.storage.hashes import hash_file
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.text import card, results_table

FIXTURES = pathlib.Path(__file__).parent / "data" / "fixtures" / "raw"
FINGERPRINT = "0123456789ab"
WHO = "Who tends the lighthouse?"


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def made_by(make: Callable[[pathlib.Path], object]) -> Callable[[], Files]:
    """The files that `make` leaves in an empty folder."""

    @functools.cache
    def files() -> Files:
        with tempfile.TemporaryDirectory() as scratch:
            made = pathlib.Path(scratch)
            make(made)
            found = [path for path in sorted(made.rglob("*")) if path.is_file()]
            return {path.relative_to(made).as_posix(): path.read_bytes() for path in found}

    return files


def demand_text(value: Any) -> None:
    """Refuse a result that cannot be written as UTF-8."""
    json.dumps(value, ensure_ascii=False, default=vars).encode()


# ---- corpora, questions, folders of both ----

DOCUMENTS: dict[str, tuple[str, bytes]] = {
    "jsonl": ("passages.jsonl", lines({"id": "a", "title": "Tern", "text": "A sea bird.\n\nOf all seas."})),
    "atlas": (
        "text-list-100-sec.jsonl",
        lines({"id": 2, "title": "Tern", "section": "Diet", "text": "Fish."}) * 2,
    ),
    "dpr": ("psgs_w100.tsv", b'id\ttext\ttitle\n1\tA tern dives.\tTern\n2\t"Plain ""text""."\tTern (bird)\n'),
    "kilt": (
        "kilt_knowledgesource.json",
        lines(
            {"wikipedia_id": "5", "wikipedia_title": "Tern", "text": ["Tern", "A bird.", "Section::::Life."]}
        ),
    ),
    "beir": ("corpus.jsonl", lines({"_id": "b1", "title": "", "text": "北京是中国的首都。", "metadata": {}})),
    "text": ("tern.txt", "A tern dives.\n\nIt eats fish, naïvely.\n".encode()),
}
KILT = {"id": "k", "input": WHO, "output": [{"answer": "Mara", "provenance": [{"wikipedia_id": "9"}]}]}
QUESTIONS: dict[str, bytes] = {
    "questions.jsonl": lines(
        {"id": "q1", "question": WHO, "answers": ["Mara", "she"], "positive_passage_ids": ["p1"]},
        {"question": WHO, "answer": "Mara"},
        {"query": WHO, "response": "Mara does."},
        {"id": "f_0", "question": WHO, "golden_answers": ["Mara"], "metadata": {}},
        {"question": WHO, "answers": ["Mara"], "positive_ctxs": [{"passage_id": "31"}, {"psg_id": 7}]},
        KILT,
    ),
    "questions.json": json.dumps([KILT, {"question": WHO, "answers": ["Mara"]}]).encode(),
    "questions.tsv": f"{WHO}\t['Mara', \"she\"]\nWhich lamp?\t['oil']\n".encode(),
    "questions.csv": f"{WHO}\t['Mara']\n".encode(),
}
BEIR = {
    "queries.jsonl": lines(
        {"_id": "q1", "text": WHO, "metadata": {"answer": ["Mara"]}}, {"_id": "q2", "text": "What lamp?"}
    ),
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq2\td5\t1\nq1\td1\t2\nq1\td2\t0\n",
}
NUMBERS = range(24)
FOLDER = {
    "passages.jsonl": lines(
        *({"id": f"p{n}", "title": f"Tower {n}", "text": f"Mara {n} built it. " * 30} for n in NUMBERS)
    ),
    "questions.jsonl": lines(
        *(
            {"id": f"q{n}", "question": f"Who {n}?", "answers": [f"Mara {n}"], "positive_passage_id": f"p{n}"}
            for n in NUMBERS
        )
    ),
}


def read_documents(form: str, name: str) -> Callable[[pathlib.Path], None]:
    def read(path: pathlib.Path) -> None:
        file = epath.Path(path) / name
        for document in documents.read_documents(file, form):
            demand_text(documents.split_document(document, max_words=50))

    return read


def read_questions(name: str) -> Callable[[pathlib.Path], None]:
    return lambda path: demand_text(list(questions.read_questions(epath.Path(path) / name)))


SCORES = {
    "scores.jsonl": lines(
        {
            "id": "q1",
            "query": WHO,
            "answer": " Mara",
            "chunk_ids": ["a", "b"],
            "answer_log_probs": [-1.5, 0],
            "no_chunk_log_prob": -2.25,
            "answer_token_count": 2,
            "token_counts": [7, 9],
            "truncated": [False, True],
            "scorer": "llama",
        }
    )
}


def read_scores(path: pathlib.Path) -> None:
    demand_text(list(scores_file.read_scores(path / "scores.jsonl")))


def read_folder(path: pathlib.Path) -> None:
    data = folder.read_folder(Folder(folder=str(path)), seed=0)
    demand_text([list(data.chunks), data.questions])


# ---- datasets to learn from, tasks to be evaluated on ----

SCIENCE = {
    "id": "s1",
    "question": {
        "stem": "What shines?",
        "choices": [{"text": "mud", "label": "A"}, {"text": "ice", "label": "B"}],
    },
    "answerKey": "B",
}
PIQA = {"goal": "Light it", "sol1": "Strike ", "sol2": "Wait"}
SIQA = {"context": "Ed left.", "question": "Why?", "answerA": "late", "answerB": "ill", "answerC": "sad"}
WINOGRANDE = {"qID": "w", "sentence": "Ed met Al as _ left.", "option1": "Ed", "option2": "Al", "answer": "1"}
TRIVIA = {"QuestionId": "t1", "Question": WHO, "Answer": {"Value": "Mara", "Aliases": ["M"]}}
EVALUATED: dict[str, Files] = {
    "nq": {"NQ-open.dev.jsonl": lines({"question": WHO, "answer": ["Mara", "Mara Holt"]})},
    "trivia_qa": {"unfiltered-web-dev.json": lines({"Data": [TRIVIA]})},
    "hotpotqa": {"hotpotqa-dev-kilt.jsonl": lines(KILT, KILT)},
    "hotpotqa-own": {
        "hotpot_dev_fullwiki_v1.json": lines([{"_id": "h1", "question": WHO, "answer": "Mara"}])
    },
    "fever": {"fever-dev-kilt.jsonl": lines({**KILT, "output": [{"answer": "REFUTES"}]})},
    "fever-own": {"paper_dev.jsonl": lines({"id": 1, "label": "SUPPORTS", "claim": "Lamps shine."})},
    "aida": {"aidayago2-dev-kilt.jsonl": lines({**KILT, "input": "In [START_ENT] Ash [END_ENT] it rained."})},
    "zsre": {"structured_zeroshot-dev-kilt.jsonl": lines({**KILT, "meta": {"template_questions": [WHO]}})},
    "trex": {"trex-dev-kilt.jsonl": lines({**KILT, "input": "Lamp [SEP] maker"})},
    "wow": {"wow-dev-kilt.jsonl": lines({**KILT, "input": "I like lamps.\nSo do I.\nWhich?"})},
    "eli5": {"eli5-dev-kilt.jsonl": lines(KILT)},
    "boolq": {"dev.jsonl": lines({"question": "is it lit", "answer": False, "passage": "It is dark."})},
    "piqa": {"valid.jsonl": lines(PIQA), "valid-labels.lst": b"0\n"},
    "siqa": {"dev.jsonl": lines(SIQA), "dev-labels.lst": b"3\n"},
    "hellaswag": {
        "hellaswag_val.jsonl": lines({"ctx": "A man. he", "endings": ["eats.", "sits."], "label": 1})
    },
    "winogrande": {"dev.jsonl": lines(WINOGRANDE)},
    "arc_easy": {"ARC-Easy-Test.jsonl": lines(SCIENCE)},
    "obqa": {"test.jsonl": lines(SCIENCE)},
    "obqa-table": {"test.tsv": b"ID\tStem\tChoices\tQuestion\tKey\n7\tLamps are\t(A) hot (B) cold\tall\tB\n"},
    "mmlu": {
        "mmlu/test/lamps_test.csv": b'"What burns, ""hot""?",oil,ash,mud,sand,A\nWhat is it?,1,2,3,4,D\n'
    },
}


def fixtures(name: str) -> Files:
    """The dataset's fixture, and the one that it is joined with."""
    names = (name, "commonsense_qa") if name == "ecqa" else (name,)
    files = [path for each in names for path in sorted((FIXTURES / each).rglob("*")) if path.is_file()]
    return {path.relative_to(FIXTURES).as_posix(): path.read_bytes() for path in files}


def read_dataset(name: str) -> Callable[[pathlib.Path], None]:
    def read(path: pathlib.Path) -> None:
        for on_error in ("skip", "stop"):
            demand_text(list(read_items(DATASETS[name], path / name, "train", on_error=on_error)))

    return read


def read_task(name: str) -> Callable[[pathlib.Path], None]:
    return lambda path: demand_text(EVAL_TASKS[name].load(path, "official", Counter()))


# ---- what a workdir holds ----


def make_stage(path: pathlib.Path, *, finished: bool, published: bool = False) -> None:
    workdir = Workdir(path)
    make = workdir.published if published else workdir.folder
    stage = make("score", FINGERPRINT)
    stage.write_json("values.json", {"a": [1, 2]})
    stage.write_arrays("arrays.npz", a=np.arange(3))
    if finished:
        stage.finish(settings={"score": {"class": "ScoreConfig", "batch_size": 8}}, examples=3)


def read_stage(path: pathlib.Path) -> None:
    workdir = Workdir(path)
    workdir.manifests("score")
    workdir.superseded([])
    stage = workdir.folder("score", FINGERPRINT)
    if stage.has("values.json"):
        stage.verified_path("values.json")
        stage.read_json("values.json")
    stage.read_arrays("arrays.npz")


def read_published(path: pathlib.Path) -> None:
    stage = TopLevelFolder(path / "score")
    if stage.complete:
        stage.read_json("values.json")


def make_claimed(path: pathlib.Path) -> None:
    workdir = Workdir(path)
    (path / "source").write_text("what a stage reads")
    workdir.source_hash(path / "source")
    workdir.claim("tiny")


def read_claimed(path: pathlib.Path) -> None:
    workdir = Workdir(path)
    assert workdir.source_hash(path / "source") == hash_file(path / "source")
    workdir.claim("tiny")


def make_metrics(path: pathlib.Path) -> None:
    metrics = Metrics(path / "metrics.jsonl")
    for step in range(4):
        metrics.write(step, "lm_ft", {"loss": 1.5, "rate": step})
    metrics.flush()


def read_metrics(path: pathlib.Path) -> None:
    Metrics(path / "metrics.jsonl").drop_after(2, "lm_ft")


FIGURE = {"value": 0.5, "low": 0.25, "high": 0.75}
SYSTEMS = {name: {"exact_match": FIGURE, "f1": FIGURE, "answer_nll": FIGURE} for name in systems.SYSTEMS}
RECALLS = dict.fromkeys(
    ("gold_recall@1", "gold_recall@10", "answer_recall@1", "answer_recall@10", "mrr"), FIGURE
)
CONTEXT = {name: {"exact_match": FIGURE, "answer_nll": FIGURE} for name in systems.CONTEXTS}
RESULTS = {
    "num_questions": 4,
    "systems": SYSTEMS,
    "gains": {"radit-base": FIGURE},
    "retrieval": dict.fromkeys(systems.RETRIEVERS, RECALLS),
    "context": {"base_lm": CONTEXT, "lm_ft_lm": CONTEXT},
}


def read_results(path: pathlib.Path) -> None:
    results = read_json(path / "results.json", "Evaluate again.")
    demand_text([results_table.results_table(results), card.measured(results)])


def make_checkpoints(path: pathlib.Path) -> None:
    saved = checkpoints.Checkpoints(path / "checkpoints")
    saved.save(1, {"a": jnp.ones(3)}, {"best": 1})
    saved.save_best(1, {"a": jnp.ones(3)}, 0.5)


def read_checkpoints(path: pathlib.Path) -> None:
    saved = checkpoints.Checkpoints(path / "checkpoints")
    if saved.latest() is not None:
        state, _ = saved.restore({"a": jnp.zeros(3)})
        assert state["a"].tolist() == [1, 1, 1]
    if saved.best() is not None:
        assert saved.restore_best({"a": jnp.zeros(3)})["a"].tolist() == [1, 1, 1]


# ---- checkpoints of others, exports ----

LICENSED = {
    "README.md": b"---\nlicense: other\nlicense_name: lamp-1\n---\n# A model\n",
    "LICENSE": b"# Apache License\nVersion 2.0\n",
    "config.json": b'{"_name_or_path": "meta-llama/Llama-3.2-1B", "model_type": "llama"}',
}


def read_llama(path: pathlib.Path) -> None:
    decoder_config.decoder_config(hf_config.read_config(path), str(path))
    hf_config.read_declared(path)


def read_vectors(path: pathlib.Path) -> None:
    vectors.read_vectors(path)
    hf_config.bert_config(hf_config.read_config(path), str(path))


def read_tensors(path: pathlib.Path) -> None:
    for tensor in tensor_files.open_tensors(path).values():
        tensor.whole()


def only(files: Callable[[], Files], *parts: str) -> Callable[[], Files]:
    """The files whose paths have one of `parts` in them."""
    return lambda: {path: data for path, data in files().items() if any(part in path for part in parts)}


hf_llama = made_by(lambda path: export_hf(path, small.language_model(), shard_bytes=20_000))
hf_bert = made_by(lambda path: export_hf(path, small.encoder()))
own_lm = made_by(lambda path: save_model(path, small.language_model()))

# ---- settings and command lines ----


def assignments(settings: Any, path: str = "") -> list[str]:
    """`section.field=value` of every setting."""
    found = []
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found += assignments(value, f"{path}{name}.")
        elif f"{path}{name}" != "name":
            found.append(f"{path}{name}={','.join(value) if isinstance(value, tuple) else value}")
    return found


TINY = config.load_experiment(str(train.TINY))
SETTINGS = {"settings": "\n".join(assignments(TINY)).replace("=None", "=").encode()}
DATA = f"--data={FIXTURES}"
COMMANDS: dict[str, tuple[Callable[..., int], list[str], list[str]]] = {  # main, arguments, and those added
    "train": (
        train.main,
        [
            "--stage=all",
            "--set=seed=3",
            "--set=r_ft.tau=0.05",
            "--set=lm_ft.lora.rank=4",
            "--workdir=none/such",
        ],
        ["--dry-run"],
    ),
    "ask": (ask.main, ["Who?", "--workdir=none/such", "--export=none/such"], []),
    "show": (show.main, ["gsm8k", DATA, "--count=1", "--length=64", "--mixture=lm_ft", "--seed=1"], []),
    "plan": (
        plan.main,
        [f"--experiment={train.TINY}", "--target=h100-8", "--chunks=1000", "--questions=10", "--set=seed=1"],
        ["--stage=corpus"],
    ),
}


def read_settings(path: pathlib.Path) -> None:
    text = (path / "settings").read_bytes().decode(errors="surrogateescape")
    changed = set(text.split("\n")) - set(SETTINGS["settings"].decode().split("\n"))
    experiment = config.override_settings(TINY, sorted(changed))
    config.check_experiment(experiment)
    json.dumps(canonical(experiment), allow_nan=False)


def run(name: str) -> Callable[[pathlib.Path], None]:
    """Run a command as its line says; what it prints is help, a result, or one line of error."""
    main, _, added = COMMANDS[name]

    def read(path: pathlib.Path) -> None:
        text = (path / "arguments").read_bytes().decode(errors="surrogateescape").replace("\0", "")
        printed, errors = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
                code = main([*text.split("\n"), *added])
        except SystemExit as end:  # argparse's
            code = 2 if end.code else 0
        last = errors.getvalue().strip().split("\n")[-1]
        assert code == 0 or code in (1, 2) and "error: " in last, (code, errors.getvalue()[-2000:])
        printed.getvalue().encode()

    return read


def arguments(words: Sequence[str]) -> Callable[[], Files]:
    return lambda: {"arguments": "\n".join(words).encode()}


READERS: dict[str, Reader] = {
    **{
        f"documents-{form}": Reader(functools.partial(dict, {name: data}), read_documents(form, name), 40)
        for form, (name, data) in DOCUMENTS.items()
    },
    **{
        name: Reader(functools.partial(dict, {name: data}), read_questions(name), 60)
        for name, data in QUESTIONS.items()
    },
    "documents-gzip": Reader(
        lambda: {"passages.jsonl.gz": gzip.compress(DOCUMENTS["jsonl"][1] * 3, mtime=0)},
        read_documents("jsonl", "passages.jsonl.gz"),
        40,
    ),
    "dataset-gzip": Reader(
        lambda: {"gsm8k/train.jsonl.gz": gzip.compress(fixtures("gsm8k")["gsm8k/train.jsonl"], mtime=0)},
        read_dataset("gsm8k"),
        40,
    ),
    "questions-beir": Reader(lambda: BEIR, read_questions("qrels/test.tsv"), 60),
    "folder": Reader(lambda: FOLDER, read_folder, 40),
    "scores": Reader(lambda: SCORES, read_scores, 60),
    **{
        f"dataset-{name}": Reader(functools.partial(fixtures, name), read_dataset(name), 20)
        for name in DATASETS
    },
    **{
        f"task-{name}": Reader(lambda files=files: files, read_task(name.partition("-")[0]), 20)
        for name, files in EVALUATED.items()
    },
    "ask-file": Reader(
        lambda: {"q.jsonl": lines({"question": WHO}, {"question": "Where?"})},
        lambda path: demand_text(list(questions.read_asked(epath.Path(path) / "q.jsonl"))),
    ),
    "manifest": Reader(made_by(functools.partial(make_stage, finished=True)), read_stage, 60),
    "sidecars": Reader(made_by(functools.partial(make_stage, finished=False)), read_stage, 60),
    "published": Reader(
        made_by(functools.partial(make_stage, finished=True, published=True)), read_published, 60
    ),
    "workdir": Reader(made_by(make_claimed), read_claimed, 60),
    "prepared": Reader(
        lambda: {"chunks.json": b'{"max_words": 200, "chunks": 5, "counts": {"passages": 5}}'},
        lambda path: corpus.prepared(path, 200),
    ),
    "metrics": Reader(only(made_by(make_metrics), "metrics.jsonl"), read_metrics, 40),
    "results": Reader(lambda: {"results.json": json.dumps(RESULTS).encode()}, read_results, 30),
    "checkpoints": Reader(made_by(make_checkpoints), read_checkpoints, 12),
    "hf-llama": Reader(only(hf_llama, "config.json"), read_llama, 80),
    "hf-bert": Reader(only(hf_bert, "modules.json", "config"), read_vectors, 80),
    "hf-tensors": Reader(only(hf_llama, "safetensors"), read_tensors, 60),
    "hf-tokenizer": Reader(only(hf_bert, "token", "vocab"), load_tokenizer, 30),
    "gguf": Reader(made_by(write_whole_model), lambda path: radit_jax.load(str(path)), 60),
    "hf-load-llama": Reader(hf_llama, lambda path: radit_jax.load(str(path)), 12),
    "hf-load-bert": Reader(hf_bert, lambda path: radit_jax.load(str(path)), 12),
    "own-lm": Reader(own_lm, load_model, 12),
    "licence": Reader(lambda: LICENSED, lambda path: licences.origin("data", "hub:x/y", path), 60),
    "settings": Reader(lambda: SETTINGS, read_settings, 200, names_file=False),
    **{
        f"command-{name}": Reader(arguments(words), run(name), 40 if name != "show" else 10)
        for name, (_, words, _) in COMMANDS.items()
    },
}
