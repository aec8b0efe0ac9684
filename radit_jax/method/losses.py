"""RA-DIT's equations (arXiv 2310.01352, section 2) as pure functions.

    Eq. 1   s(q, c)        = E_q(q) · E_d(c)                              retrieval_score
    Eq. 2   p_R(c | x)     = softmax of s(x, c) over C'                   retrieval_log_prob
            p_LM(y | x,C') = Σ_c p_LM(y | c∘x) p_R(c | x)                 ensemble_log_prob
    Eq. 3   L(D_L)         = -Σ log p_LM(y | c∘x)                         lm_ft_loss
    Eq. 4   p_LSR(c | x,y) = softmax of p_LM(y | c∘x) / τ over C'         lsr_log_prob
    Eq. 5   L(D_R)         = KL(p_R ‖ p_LSR)                              r_ft_loss

Every probability is a logarithm in nats, in float32 at least. Every loss is one value per example, which the
caller reduces. `chunk_mask` is True where a chunk is real. A masked entry, even NaN, changes neither value
nor gradient; a distribution is -inf there. An example without chunks has loss and gradient 0.
"""

from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config.shapes import Direction, LmScoreForm
from radit_jax.models.attention import widened

SATURATED = 0.999  # a query's max p_R above which the paper's direction of the KL has almost no gradient


def retrieval_score(
    query_embeddings: Float[Array, "B D"],
    chunk_embeddings: Float[Array, "B K D"],
) -> Float[Array, "B K"]:
    """s(q, c), the dot product of each query with its own chunks: Eq. 1.

    Whatever the embeddings are stored in, products and sums are float32: DRAGON+ scores are near 396, where
    neighbouring bfloat16 numbers are 2 apart.
    """
    queries = widened(query_embeddings)
    chunks = widened(chunk_embeddings)
    return jnp.einsum(
        "bd,bkd->bk",
        queries,
        chunks,
        precision=jax.lax.Precision.HIGHEST,
    )


def retrieval_log_prob(
    scores: Float[Array, "B K"],
    chunk_mask: Bool[Array, "B K"],
    temperature: float = 1.0,
) -> Float[Array, "B K"]:
    """Log p_R(c | x), the softmax of the scores over the retrieved chunks: in Eq. 2.

    The paper has no `temperature`, which suits DRAGON+; an encoder of unit vectors needs about 0.05.
    """
    return _masked_log_softmax(scores / temperature, chunk_mask)


def lm_score(
    answer_log_probs: Float[Array, "B K"],
    answer_token_counts: Int[Array, " B"],
    *,
    form: LmScoreForm,
) -> Float[Array, "B K"]:
    """The form of p_LM(y | c∘x) that Eq. 4 takes, from log p_LM(y | c∘x) summed over the answer's tokens.

    The paper does not say how it treats length. Its literal `prob` underflows for long answers, so that p_LSR
    becomes uniform; `token_geomean`, exp of the mean log-probability of a token, does not. `mean_log_prob`
    (Atlas) and `sum_log_prob` skip the exponential: their softmax is a power of the likelihood itself.
    """
    log_probs = widened(answer_log_probs)
    # An empty answer has log-probability 0, and no token to divide by.
    num_tokens = jnp.maximum(answer_token_counts, 1)
    per_token = log_probs / num_tokens[:, None]
    match form:
        case "token_geomean":
            return jnp.exp(per_token)
        case "prob":
            return jnp.exp(log_probs)  # Eq. 4 as it is written
        case "mean_log_prob":
            return per_token
        case "sum_log_prob":
            return log_probs
    forms = ", ".join(get_args(LmScoreForm))
    raise ValueError(f"lm_score: expected a form among {forms}, got {form!r}. Choose one of them.")


def lsr_log_prob(
    answer_log_probs: Float[Array, "B K"],
    answer_token_counts: Int[Array, " B"],
    chunk_mask: Bool[Array, "B K"],
    *,
    form: LmScoreForm,
    tau: float,
) -> Float[Array, "B K"]:
    """Log p_LSR(c | x, y), how much the language model likes each chunk for the answer: Eq. 4.

    `answer_log_probs` are sums over the answer's tokens in nats, without its terminator.
    """
    scores = lm_score(answer_log_probs, answer_token_counts, form=form)
    return _masked_log_softmax(scores / tau, chunk_mask)


def posterior_log_prob(
    retrieval_log_probs: Float[Array, "B K"],
    lsr_log_probs: Float[Array, "B K"],
    chunk_mask: Bool[Array, "B K"],
) -> Float[Array, "B K"]:
    """Log p(c | x, y) ∝ log p_R(c | x) + log p_LSR(c | x, y), a target for R-ft of our own.

    p_R is the untuned retriever's. With `sum_log_prob` and τ = 1 it is the posterior of Eq. 2's mixture.
    """
    return _masked_log_softmax(retrieval_log_probs + lsr_log_probs, chunk_mask)


def r_ft_loss(
    retrieval_log_probs: Float[Array, "B K"],
    target_log_probs: Float[Array, "B K"],
    chunk_mask: Bool[Array, "B K"],
    *,
    direction: Direction = "retrieval_to_lsr",
) -> Float[Array, " B"]:
    """KL(p_R ‖ p_LSR) in nats for each example: Eq. 5.

    The direction is the paper's. `lsr_to_retrieval`, KL(p_LSR ‖ p_R), is what Atlas, REPLUG and fed-rag
    compute; `symmetric` is the mean of the two.
    """
    # The compiler drops the direction that is not returned.
    forward = _kl(retrieval_log_probs, target_log_probs, chunk_mask)
    backward = _kl(target_log_probs, retrieval_log_probs, chunk_mask)
    match direction:
        case "retrieval_to_lsr":
            return forward
        case "lsr_to_retrieval":
            return backward
        case "symmetric":
            return (forward + backward) / 2
    directions = ", ".join(get_args(Direction))
    raise ValueError(
        f"r_ft_loss: expected a direction among {directions}, got {direction!r}. Choose one of them."
    )


def lm_ft_loss(
    token_log_probs: Float[Array, "B A"],
    target_weights: Float[Array, "B A"],
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Each row's weighted negative log-likelihood in nats, and the weight that it carries: Eq. 3.

    The paper sums. We divide the sum over the *global* batch by its weight, the number of answer tokens where
    weights are 0 and 1; a mean of the rows' means would weigh an answer by what it happens to be packed with.
    """
    # What an unused slot holds must not count, not even as NaN · 0.
    is_used = target_weights > 0
    nll = jnp.where(is_used, -token_log_probs * target_weights, 0.0)
    nll_per_row = nll.sum(axis=-1)
    weights = jnp.where(is_used, target_weights, 0.0)
    return nll_per_row, weights.sum(axis=-1)


def ensemble_log_prob(
    answer_log_probs: Float[Array, "B K"],
    retrieval_log_probs: Float[Array, "B K"],
    chunk_mask: Bool[Array, "B K"],
) -> Float[Array, " B"]:
    """Log p_LM(y | x, C'), the answer's probability mixed over the chunks by p_R: Eq. 2.

    Between two generated answers `answer_log_probs` include the terminator, or the shorter would always win.
    Without any chunk the mixture is empty: -inf.
    """
    # log (p_LM · p_R) of each chunk, which the mixture sums.
    joint_log_probs = widened(answer_log_probs) + retrieval_log_probs
    return _masked_logsumexp(joint_log_probs, chunk_mask)


def contrastive_loss(
    query_embeddings: Float[Array, "B D"],
    chunk_embeddings: Float[Array, "B D"],
    temperature: float,
) -> Float[Array, " B"]:
    """-log of the probability that each query picks its own chunk among the whole batch's chunks (InfoNCE).

    Not in RA-DIT: it trains the base retriever of an experiment that names no checkpoint.
    """
    queries = widened(query_embeddings)
    chunks = widened(chunk_embeddings)
    # Every query with every chunk of the batch.
    scores = jnp.einsum(
        "bd,cd->bc",
        queries,
        chunks,
        precision=jax.lax.Precision.HIGHEST,
    )
    log_probs = jax.nn.log_softmax(scores / temperature, axis=-1)
    # Each query's own chunk has its number.
    return -jnp.diagonal(log_probs)


def _kl(
    p_log: Float[Array, "B K"],
    q_log: Float[Array, "B K"],
    mask: Bool[Array, "B K"],
) -> Float[Array, " B"]:
    """KL(p ‖ q) = Σ p (log p − log q) over the unmasked entries, in nats."""
    # The masked logarithms are replaced before the product: 0 · -inf is NaN, in the gradient too.
    p_log = jnp.where(mask, p_log, 0.0)
    q_log = jnp.where(mask, q_log, 0.0)
    terms = jnp.exp(p_log) * (p_log - q_log)
    return jnp.where(mask, terms, 0.0).sum(axis=-1)


def _masked_log_softmax(
    logits: Float[Array, "B K"],
    mask: Bool[Array, "B K"],
) -> Float[Array, "B K"]:
    """The log-softmax over the unmasked entries; -inf at the others."""
    normalizer = _masked_logsumexp(logits, mask)[:, None]
    # Where nothing is unmasked the normaliser is -inf, which a subtraction must not meet.
    log_probs = logits - jnp.where(mask, normalizer, 0.0)
    return jnp.where(mask, log_probs, -jnp.inf)


def _masked_logsumexp(
    logits: Float[Array, "B K"],
    mask: Bool[Array, "B K"],
) -> Float[Array, " B"]:
    """Log Σ exp over the unmasked entries; -inf, with gradient 0, where there are none."""
    is_any = mask.any(axis=-1)

    # The highest entry is subtracted, so that no exponential overflows.
    peak = jnp.where(mask, logits, -jnp.inf).max(axis=-1)
    peak = jax.lax.stop_gradient(peak)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)

    # Inside the exponential a masked entry is 0, not -inf or garbage: `where` alone does not stop a gradient
    # of 0 · inf on the side that it leaves out.
    shifted = jnp.where(mask, logits - peak[:, None], 0.0)
    total = jnp.where(mask, jnp.exp(shifted), 0.0).sum(axis=-1)

    # Nor does the logarithm meet the 0 of an empty sum.
    log_sum = peak + jnp.log(jnp.where(is_any, total, 1.0))
    return jnp.where(is_any, log_sum, -jnp.inf)
