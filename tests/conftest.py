"""Strict by default: eight devices, no silent rank promotion, warnings are errors, shapes are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pathlib
import time

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("radit_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Fast tests have programs that run once: XLA makes them in half the time if it improves them less.

    What trains for long or is held to a chip's memory is slow, and has programs as users have them.
    """
    if config.option.markexpr == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # of programs that tests start
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """A folder of real data (`wiki/`, `raw/`, `tokenizers/`), named by RADIT_DATA."""
    folder = os.environ.get("RADIT_DATA", "")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("RADIT_DATA names no folder of real data")
    return pathlib.Path(folder)


@pytest.fixture
def float64():
    """jax computes in float64 where it is asked to, as `exact.in_float64` asks; tests/exact.py says why.

    For one test at a time: what a session or a module shares is made without, or says that it is not.
    """
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def exact_scorers(float64, monkeypatch: pytest.MonkeyPatch) -> None:
    """The language models that stages score with compute in float64."""
    from exact import model_in_float64

    from radit_jax.lm import scoring

    load = scoring.load_model
    monkeypatch.setattr(scoring, "load_model", lambda *path, **how: model_in_float64(load(*path, **how)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that only moves when told to."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


# Imported where they are used, so that the hook above sees their imports; tests/small.py says what they are.


@pytest.fixture(scope="session")
def lm():
    import small

    return small.language_model()


@pytest.fixture(scope="session")
def lm64(lm):
    """The same in float64, where what is equal is so but for what is stored."""
    from exact import model_in_float64

    return model_in_float64(lm)


@pytest.fixture(scope="session")
def searcher64(searcher):
    from exact import searcher_in_float64

    return searcher_in_float64(searcher)


@pytest.fixture(scope="session")
def hf_llama(tmp_path_factory: pytest.TempPathFactory, lm) -> str:
    """The folder of a random LLaMA that transformers saved, with the tokeniser of `lm`."""
    import transformers

    from radit_jax.runtime.pretrained.tokenizer_files import save_tokenizer

    folder = tmp_path_factory.mktemp("hf") / "llama"
    config = transformers.LlamaConfig(
        vocab_size=lm.tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, lm.tokenizer)
    return str(folder)


@pytest.fixture(scope="session")
def searcher():
    import small

    return small.searcher()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, lm, searcher):
    import small

    return small.finished_stages(tmp_path_factory.mktemp("inputs"), lm, searcher)


@pytest.fixture(scope="session")
def exported(inputs, tmp_path_factory):
    """An export of the small models, which answers with two chunks."""
    from radit_jax.config import EvaluateConfig, ExportConfig, MeshConfig
    from radit_jax.runtime.storage.workdir import Workdir
    from radit_jax.stages import export

    output = Workdir(tmp_path_factory.mktemp("export")).published("export", "0" * 12)
    facts = export.run(
        {
            **inputs,
            "base_lm": inputs["lm"],
            "lm_ft": inputs["lm"],
            "scores": inputs["corpus"],  # whose manifest names no model
            "r_ft": inputs["retriever"],
        },
        output,
        evaluate=EvaluateConfig(chunks_per_answer=2, tasks=("nq",), tasks_folder="raw"),
        temperature=0.5,
        lm_score="mean_log_prob",
        tau=0.25,
        export=ExportConfig(hf=False, run_depth=0, measured=False),
        mesh=MeshConfig(),
    )
    output.finish(**facts)
    return output.path
