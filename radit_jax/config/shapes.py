"""The shapes of the two networks, as their checkpoints' configs give them, and the forms of Eq. 4 and 5."""

from dataclasses import dataclass
from typing import Literal

from radit_jax.config.ranges import PositiveFloat, PositiveInt, Settings, added

EncoderFamily = Literal["bert", "roberta", "xlm-roberta"]  # as `model_type` in a checkpoint's config.json
Pooling = Literal["cls", "mean"]  # one vector from those of all tokens: [CLS]'s, or their mean
LmScoreForm = Literal["token_geomean", "prob", "mean_log_prob", "sum_log_prob"]  # what Eq. 4 takes for p_LM
Direction = Literal["retrieval_to_lsr", "lsr_to_retrieval", "symmetric"]  # of the divergence in Eq. 5


@dataclass(frozen=True)
class RopeScaling(Settings):
    """Llama 3's frequency scaling of RoPE (`rope_type: llama3` in a checkpoint's config)."""

    factor: PositiveFloat = 8.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_length: PositiveInt = 8192


@dataclass(frozen=True)
class DecoderConfig(Settings):
    """The shape of a LLaMA network."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_size: PositiveInt
    ffn_size: PositiveInt
    max_length: PositiveInt = 2048
    rms_norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False


@dataclass(frozen=True)
class BertConfig(Settings):
    """The shape of an encoder, BERT's or a relative's, and how it turns tokens into one vector."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    ffn_size: PositiveInt
    max_length: PositiveInt = 512
    type_vocab_size: PositiveInt = 2
    layer_norm_eps: PositiveFloat = 1e-12
    pooling: Pooling = "cls"
    normalize: bool = False
    prompts: tuple[tuple[str, str], ...] = ()  # names, and the texts that may be put before others
    default_prompt: str = ""  # the name of the one that is put before every text; empty: none is
    truncate_dim: PositiveInt | None = None  # vectors are cut to this many numbers, after normalising
    family: EncoderFamily = added("bert")

    @property
    def first_position(self) -> int:
        """The position of a text's first token; RoBERTa and its relatives keep 0 and 1 for padding."""
        return 0 if self.family == "bert" else 2

    @property
    def prompt(self) -> str:
        """The text that is put before every text that the encoder reads."""
        return dict(self.prompts).get(self.default_prompt, "")

    @property
    def vector_size(self) -> int:
        """D, the numbers in a vector."""
        return self.truncate_dim or self.hidden_size


VECTOR_SETTINGS = ("pooling", "normalize", "prompts", "default_prompt", "truncate_dim")  # of a BertConfig


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # LLaMA's
