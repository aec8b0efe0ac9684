"""What the stages pass to each other: chunks to retrieve from, and questions asked of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """A passage short enough to be prepended to a prompt; the unit of retrieval."""

    id: str
    title: str
    text: str

    @property
    def passage(self) -> str:
        """The text that both the encoder and the language model see: `{title} {text}`."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class Question:
    """A question with its gold answers, the first of which is the one to learn."""

    id: str
    question: str
    answers: tuple[str, ...]
    gold_chunks: tuple[str, ...] = ()  # ids of chunks that hold the answer, where known
    group: str = ""  # questions of one group (an entity, a passage) are resampled together


@dataclass(frozen=True)
class Example:
    """One (x, y) of D_L or D_R: what the retriever reads, what the language model reads and writes.

    `prompt` and `answer` are concatenated as they are, so an answer carries its own leading space.
    """

    id: str
    query: str
    prompt: str
    answer: str
    source_chunk: str = ""  # the chunk that a corpus example was cut from, which it must not retrieve
