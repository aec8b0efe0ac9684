"""The shapes of the two networks, as their checkpoints' configs give them, and the forms of Eq. 4 and 5."""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from radit_jax.config.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Settings, added

EncoderFamily = Literal["bert", "roberta", "xlm-roberta", "mpnet", "distilbert"]  # as config.json has it
Pooling = Literal["cls", "mean", "last"]  # one vector from those of all tokens: [CLS]'s, their mean, the last
LmScoreForm = Literal["token_geomean", "prob", "mean_log_prob", "sum_log_prob"]  # what Eq. 4 takes for p_LM
Direction = Literal["retrieval_to_lsr", "lsr_to_retrieval", "symmetric"]  # of the divergence in Eq. 5


Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2"]  # of decoders


class Traits(NamedTuple):
    """What every decoder of a family has, and LLaMA has not; and what some have, as settings."""

    qkv_bias: bool = False  # biases on queries, keys and values
    # RMSNorm on queries and keys before they are rotated: on each head's, or on those of all heads as one
    qk_norm: Literal["none", "head", "all"] = "none"
    gelu: bool = False  # the feed-forward gate is GELU's tanh form, and not SiLU
    norms_before: bool = True  # attention and the feed-forward part read the normalised stream
    norms_after: bool = False  # what attention and the feed-forward part add is normalised too
    centred_norms: bool = False  # a norm multiplies by 1 + weight
    scaled_embeddings: bool = False  # a token's embedding is multiplied by √D on its way in
    may_set: tuple[str, ...] = ()  # settings of a `DecoderConfig` that LLaMA leaves as they are
    has_to_set: tuple[str, ...] = ()


_LAYERS = ("window", "global_every")
_SCORES = ("query_divisor", "score_cap", "logit_cap")
_GEMMA2 = Traits(
    gelu=True,
    norms_after=True,
    centred_norms=True,
    scaled_embeddings=True,
    may_set=(*_LAYERS, *_SCORES),
    has_to_set=("query_divisor",),
)
TRAITS: dict[Family, Traits] = {
    "llama": Traits(),
    "mistral": Traits(may_set=("window",)),
    "qwen2": Traits(qkv_bias=True, may_set=_LAYERS),
    "qwen3": Traits(qk_norm="head", may_set=_LAYERS),
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2._replace(
        qk_norm="head",
        may_set=(*_LAYERS, *_SCORES, "local_rope_theta"),
        has_to_set=("query_divisor", "local_rope_theta"),
    ),
    "olmo2": Traits(qk_norm="all", norms_before=False, norms_after=True),
}


@dataclass(frozen=True)
class RopeScaling(Settings):
    """How RoPE's frequencies are scaled for a context that is longer than the original one.

    `linear` divides all of them by `factor`; `llama3` leaves the fast ones alone (`rope_frequencies`).
    """

    factor: PositiveFloat = 8.0  # longest waves are stretched by it
    # llama3: waves longer than original_max_length / this are stretched whole
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0  # llama3: waves shorter than original_max_length / this stay
    original_max_length: PositiveInt = 8192  # tokens of the context before it was lengthened
    # llama3 leaves fast frequencies alone, linear divides all
    kind: Literal["llama3", "linear"] = added("llama3")


@dataclass(frozen=True)
class DecoderConfig(Settings):
    """The shape of a decoder: a LLaMA, or one of its relatives.

    With a `window`, layers are local: a position sees itself and the `window` − 1 positions before it. Every
    `global_every`-th layer sees all of them.
    """

    vocab_size: PositiveInt  # pieces of the vocabulary, V
    hidden_size: PositiveInt  # numbers in a token's state, D
    num_layers: PositiveInt  # number of layers, L
    num_heads: PositiveInt  # query heads of a layer, N
    num_kv_heads: PositiveInt  # key and value heads of a layer; must divide `num_heads`
    head_size: PositiveInt  # numbers of a head, H; even, for RoPE
    ffn_size: PositiveInt  # numbers inside the feed-forward part
    max_length: PositiveInt = 2048  # tokens of the longest context
    rms_norm_eps: PositiveFloat = 1e-5  # added to the mean square in RMSNorm
    rope_theta: PositiveFloat = 10_000.0  # base of RoPE's frequencies, θ
    rope_scaling: RopeScaling | None = None  # scaling of RoPE in global layers; None: none
    tie_embeddings: bool = False  # the head's matrix is that of the embeddings
    family: Family = added("llama")  # whose form the layers have, as `model_type` in a config.json
    window: PositiveInt | None = added(None)  # positions that a local layer sees; None: every layer sees all
    # every such layer sees all positions; 0: with a window, all layers are local
    global_every: NonNegativeInt = added(0)
    # base of RoPE's frequencies in local layers; None: theirs is rope_theta
    local_rope_theta: PositiveFloat | None = added(None)
    query_divisor: PositiveInt | None = added(None)  # scores are divided by its square root; None: head_size
    score_cap: PositiveFloat | None = added(None)  # a score s becomes cap · tanh(s / cap); None: it stays
    logit_cap: PositiveFloat | None = added(None)  # a logit z becomes cap · tanh(z / cap); None: it stays

    @property
    def traits(self) -> Traits:
        """What the family has beyond LLaMA."""
        return TRAITS[self.family]

    @property
    def score_scale(self) -> float:
        """What the product of a query and a key is multiplied by."""
        return (self.query_divisor or self.head_size) ** -0.5

    @property
    def is_local(self) -> tuple[bool, ...]:
        """Whether a layer sees the window only, for each of the L layers.

        >>> DecoderConfig(8, 8, 4, 1, 1, 8, 8, window=512, global_every=3).is_local
        (True, True, False, True)
        """
        layers = []
        for number in range(1, self.num_layers + 1):
            is_global = self.window is None or (self.global_every and number % self.global_every == 0)
            layers.append(not is_global)
        return tuple(layers)


def shape_error(config: DecoderConfig) -> str | None:
    """The first setting that contradicts another one, or that no checkpoint of its family has.

    In the form `setting: expected X, got Y`; None where the config is sound.
    """
    # Each key head serves as many heads, and RoPE turns pairs of a head's numbers.
    if config.num_heads % config.num_kv_heads:
        return f"num_kv_heads: expected a divisor of num_heads {config.num_heads}, got {config.num_kv_heads}"
    if config.head_size < 2 or config.head_size % 2:
        return f"head_size: expected an even number, for RoPE, got {config.head_size}"
    scaling = config.rope_scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        return (
            f"rope_scaling.low_freq_factor: expected less than high_freq_factor {scaling.high_freq_factor}, "
            f"got {scaling.low_freq_factor}"
        )
    # A pattern is one of local and of global layers.
    most = config.num_layers
    if config.window is None:
        most = 0
    if config.global_every > most:
        return (
            f"global_every: expected at most {most}, with {config.num_layers} layers and window "
            f"{config.window}, got {config.global_every}"
        )
    return _family_error(config)


def _family_error(config: DecoderConfig) -> str | None:
    """`shape_error` of what a family may set and has to."""
    traits = config.traits
    # Settings that only some families have.
    of_some = set()
    for others in TRAITS.values():
        of_some.update(others.may_set)
    for field in fields(config):
        name = field.name
        value = getattr(config, name)
        is_default = value == field.default
        # A number that the family's file always has.
        if name in traits.has_to_set and is_default:
            return f"{name}: expected a number with family {config.family}, got {value}"
        is_allowed = name in traits.may_set or name not in of_some
        if not is_allowed and not is_default:
            return f"{name}: expected {field.default} with family {config.family}, got {value}"
    return None


class Prompted(Settings):
    """An encoder's config: the prompt that its texts have."""

    prompts: tuple[tuple[str, str], ...]
    default_prompt: str

    @property
    def prompt(self) -> str:
        """The text that is put before every text that the encoder reads."""
        return dict(self.prompts).get(self.default_prompt, "")


@dataclass(frozen=True)
class BertConfig(Prompted):
    """The shape of an encoder, BERT's or a relative's, and how it turns tokens into one vector."""

    vocab_size: PositiveInt  # pieces of the vocabulary, V
    hidden_size: PositiveInt  # numbers in a token's state, D
    num_layers: PositiveInt  # number of layers, L
    num_heads: PositiveInt  # attention heads of a layer; must divide `hidden_size`
    ffn_size: PositiveInt  # numbers inside the feed-forward part
    max_length: PositiveInt = 512  # tokens of the longest text
    type_vocab_size: PositiveInt = 2  # token types that have an embedding
    layer_norm_eps: PositiveFloat = 1e-12  # added to the variance in LayerNorm
    pooling: Literal["cls", "mean"] = "cls"  # how tokens' states become one vector
    normalize: bool = False  # vectors have length 1
    prompts: tuple[tuple[str, str], ...] = ()  # names, and the texts that may be put before others
    default_prompt: str = ""  # name of the prompt that is put before every text; empty: none is
    # numbers that a vector is cut to, after normalising; None: it is not cut
    truncate_dim: PositiveInt | None = None
    family: EncoderFamily = added("bert")  # whose form the layers have, as `model_type` in a config.json

    @property
    def first_position(self) -> int:
        """The position of a text's first token; RoBERTa and its relatives keep 0 and 1 for padding."""
        return 0 if self.family in ("bert", "distilbert") else 2

    @property
    def has_token_types(self) -> bool:
        """Whether an embedding of its type is added to each token's."""
        return self.family not in ("mpnet", "distilbert")

    @property
    def has_distance_bias(self) -> bool:
        """Whether a score in attention depends on how far apart the two tokens are."""
        return self.family == "mpnet"

    @property
    def vector_size(self) -> int:
        """D, the numbers in a vector."""
        return self.truncate_dim or self.hidden_size


@dataclass(frozen=True)
class LastTokenConfig(Prompted):
    """A decoder whose state at a text's last token is the text's vector; the settings are `BertConfig`'s."""

    decoder: DecoderConfig  # shape of the decoder that reads the texts
    pooling: Literal["last"] = "last"  # the state at the last token is the vector
    normalize: bool = False  # vectors have length 1
    prompts: tuple[tuple[str, str], ...] = ()  # names, and the texts that may be put before others
    default_prompt: str = ""  # name of the prompt that is put before every text; empty: none is
    # numbers that a vector is cut to, after normalising; None: it is not cut
    truncate_dim: PositiveInt | None = None

    @property
    def vocab_size(self) -> int:
        """V, the ids that it knows."""
        return self.decoder.vocab_size

    @property
    def max_length(self) -> int:
        """The tokens that a text may have."""
        return self.decoder.max_length

    @property
    def vector_size(self) -> int:
        """D, the numbers in a vector."""
        return self.truncate_dim or self.decoder.hidden_size


# Whatever encodes texts: each has `prompt`, `max_length` and `vector_size`.
EncoderConfig = BertConfig | LastTokenConfig


def layers_of(encoder: EncoderConfig) -> BertConfig | DecoderConfig:
    """What has the sizes of an encoder's layers."""
    return encoder.decoder if isinstance(encoder, LastTokenConfig) else encoder


VECTOR_SETTINGS = ("pooling", "normalize", "prompts", "default_prompt", "truncate_dim")  # of an encoder


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # a decoder's
