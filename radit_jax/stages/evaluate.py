"""evaluate: the ablation. Five systems answer the test questions, and both retrievers are measured.

The questions are the corpus' own, or those of the tasks that `evaluate.tasks` names. Every figure has a 95 %
interval from a bootstrap over groups of questions (entities, passages); a gain is a paired difference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.eval_tasks.registry import KILT_DEVELOPMENT
from radit_jax.data.readers.kilt_pages import find_pages
from radit_jax.evaluation.corpus_questions import CorpusQuestionEval
from radit_jax.evaluation.details import detail_lines
from radit_jax.evaluation.few_shot_base import FewShotBase
from radit_jax.evaluation.figures import CUTOFFS, QuestionFigures, ranking_figures
from radit_jax.evaluation.questions import LoadedTask, load_tasks, questions_that_fit, without_too_long
from radit_jax.evaluation.systems import STAGE_OF_LM, RetrievedChunks
from radit_jax.evaluation.task_ablation import TaskAblation
from radit_jax.lm.scoring import PairScorer
from radit_jax.retrieval.search import Searcher, chunk_log_probs
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.answering_mesh import for_each_process
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs


def run(
    inputs: StageInputs,
    output: StageFolder,
    *,
    evaluate: EvaluateConfig,
    temperature: float,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Answer, score and rank; write `results.json` and predictions."""
    # Tasks are loaded before models: one of their files may be missing, and loading models takes long.
    tasks = load_tasks(evaluate, seed=seed)
    page_of = find_pages(inputs["corpus"].manifest, evaluate.kilt_titles) if tasks else None

    # Both retrievers search one index, unless R-ft tuned the chunk encoder too.
    base = Searcher.load(inputs, mesh, copies=True)
    searchers = {"base": base, "r_ft": base.tuned(inputs, mesh)}
    if not evaluate.answers:
        return _measure_retrievers(inputs, output, searchers, evaluate, temperature, seed)

    models = _load_models(inputs, evaluate, mesh)
    if all(scorer.own for scorer in models.values()):
        _, num_processes = processes.process_index_and_count()
        evaluate = for_each_process(evaluate, num_processes)
    tokenizer = models["base_lm"].model.tokenizer
    if evaluate.tasks:
        return TaskAblation(
            output,
            [without_too_long(loaded, tokenizer, evaluate) for loaded in tasks],
            Chunks(inputs["corpus"]),
            searchers,
            models,
            evaluate,
            temperature,
            seed,
            chose_checkpoint=_tasks_that_chose_checkpoint(inputs, tasks),
            page_of=page_of,
        ).run()

    # Without tasks, the corpus' own questions.
    corpus = Corpus(inputs["corpus"])
    settings = evaluate.answering()
    questions = corpus.questions(settings.split)
    fitting = questions_that_fit(questions, tokenizer, settings)
    evaluation = CorpusQuestionEval(output, corpus, fitting, settings, seed, models)
    few_shot = FewShotBase.draw(corpus, base, settings, seed) if settings.shots else None
    retrieved = {}
    for name, searcher in searchers.items():
        retrieved[name] = _retrieve(evaluation, name, searcher, temperature)
    return evaluation.run(retrieved, few_shot=few_shot, too_long=len(questions) - len(fitting))


def _retrieve(
    evaluation: CorpusQuestionEval,
    name: str,
    searcher: Searcher,
    temperature: float,
) -> RetrievedChunks:
    """What the retriever `name` finds, stored: a run that resumes does not search a large corpus again."""
    file, output = f"{name}-retrieved.npz", evaluation.output
    if not output.has(file):
        found = evaluation.retrieve(searcher, temperature)
        output.write_arrays(file, **found._asdict())
    return RetrievedChunks(**output.read_arrays(file, *RetrievedChunks._fields))


def _measure_retrievers(
    inputs: StageInputs,
    output: StageFolder,
    searchers: Mapping[str, Searcher],
    evaluate: EvaluateConfig,
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    """Write `results.json` of both retrievers on all of the corpus' questions, without any answers.

    `details.jsonl` has what was retrieved, with p_R over all chunks that are ranked.
    """
    corpus = Corpus(inputs["corpus"])
    questions = corpus.questions(evaluate.split)
    queries = [question.question for question in questions]
    rows, retrieved = {}, {}
    for name, searcher in searchers.items():
        rows[name], scores = searcher.search(queries, max(CUTOFFS))
        retrieved[name] = RetrievedChunks(rows[name], chunk_log_probs(scores, temperature))
    figures = QuestionFigures(questions, evaluate.bootstrap_samples, seed)
    ranking = ranking_figures(corpus, figures, rows)
    results = {
        "fingerprint": output.fingerprint,
        "systems": {},
        **ranking,
        "num_questions": 0,
        "num_ranked": len(questions),
    }
    output.write_json("results.json", results)
    ids = [question.id for question in questions]
    output.write_jsonl("details.jsonl", detail_lines(ids, retrieved, {}, {}))
    return {"num_ranked": len(questions), "mrr_gain": ranking["retrieval_gains"]["mrr"]["value"]}


def _load_models(inputs: StageInputs, evaluate: EvaluateConfig, mesh: MeshConfig) -> dict[str, PairScorer]:
    """The two language models of the five systems, by name."""
    score = ScoreConfig(
        batch_size=evaluate.batch_size, sequence_length=evaluate.sequence_length, dtype=evaluate.dtype
    )
    # All five systems are pairs of these two models with a retriever or none.
    models = {}
    for lm, stage in STAGE_OF_LM.items():
        path = inputs[stage].verified_path("lm")
        models[lm] = PairScorer.load(path, score, mesh, num_models=len(STAGE_OF_LM), answers=evaluate)
    return models


def _tasks_that_chose_checkpoint(inputs: StageInputs, tasks: Sequence[LoadedTask]) -> frozenset[str]:
    """The tasks that share questions with those that chose LM-ft's checkpoint.

    KILT's development tasks chose it, or the dev part of the tasks that LM-ft learnt from.
    """
    corpus_settings = inputs["corpus"].manifest.get("settings", {})
    lm_ft_settings = inputs["lm_ft"].manifest.get("settings", {})
    data = corpus_settings.get("data", {})
    # With datasets of instructions LM-ft learns from those, not from tasks.
    chosen_by = () if data.get("lm_ft_datasets") else data.get("lm_ft_benchmarks", ())
    if lm_ft_settings.get("lm_ft", {}).get("select") == "kilt_dev":
        chosen_by = KILT_DEVELOPMENT
    with_dev = [loaded.task.name for loaded in tasks if _has_dev_questions(loaded)]
    return frozenset(name for name in with_dev if name in chosen_by)


def _has_dev_questions(loaded: LoadedTask) -> bool:
    """Whether dev questions are among those asked: half of a KILT file's are."""
    if loaded.split == "official":
        splits = loaded.task.splits
        return splits["official"].file == splits["dev"].file
    return loaded.split == "dev"
