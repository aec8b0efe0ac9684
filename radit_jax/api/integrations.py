"""Our retriever as one of LangChain's and one of LlamaIndex's, whose packages are imported on use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from radit_jax.api.inputs import Hit


@contextmanager
def _demanding(package: str) -> Iterator[None]:
    """Say how to install a package that is not there."""
    try:
        yield
    except ImportError:
        raise ValueError(
            f"expected the package {package}, got none. pip install 'radit_jax[integrations]'."
        ) from None


def langchain_retriever(retriever: Any, k: int) -> Any:
    """A `langchain_core` retriever: documents have the passage's text, and the rest as metadata."""
    with _demanding("langchain-core"):
        from langchain_core.documents import Document
        from langchain_core.retrievers import BaseRetriever

    # The class is made here: its base is there only where the package is. Its fields are pydantic's.
    class RaditLangchainRetriever(BaseRetriever):
        """Searches with the tuned query encoder."""

        num_chunks: int

        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            documents = []
            # A document's text is the passage without its title, as others' splitters leave it.
            for hit in _search(retriever, query, self.num_chunks):
                metadata = _metadata(hit)
                documents.append(Document(page_content=hit.chunk.text, id=hit.chunk.id, metadata=metadata))
            return documents

    return RaditLangchainRetriever(num_chunks=k)


def llama_index_retriever(retriever: Any, k: int) -> Any:
    """A `llama_index.core` retriever: nodes have the passage's text, and a score s(q, c)."""
    with _demanding("llama-index-core"):
        from llama_index.core.base.base_retriever import BaseRetriever
        from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    # Made here for the same reason.
    class RaditLlamaIndexRetriever(BaseRetriever):
        """Searches with the tuned query encoder."""

        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            nodes = []
            # A node's score is Eq. 1's, which LlamaIndex only sorts by.
            for hit in _search(retriever, query_bundle.query_str, k):
                node = TextNode(text=hit.chunk.text, id_=hit.chunk.id, metadata=_metadata(hit))
                nodes.append(NodeWithScore(node=node, score=hit.score))
            return nodes

    return RaditLlamaIndexRetriever()


def _search(retriever: Any, query: str, k: int) -> Sequence[Hit]:
    # Both ask for one query at a time.
    (hits,) = retriever.search([query], k)
    return hits


def _metadata(hit: Hit) -> dict[str, Any]:
    return {"title": hit.chunk.title, "score": hit.score, "log_prob": hit.log_prob}
