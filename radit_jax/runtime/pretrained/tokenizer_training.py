"""Tokenisers trained on an experiment's own text: byte-level BPE and WordPiece."""

from collections import Counter
from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from radit_jax.runtime.pretrained.tokenizers import ENCODER_SPECIALS, LM_SPECIALS, Tokenizer

# transformers, which `tokenizers.py` sets up before it is imported.
from transformers import PreTrainedTokenizerFast  # isort: skip


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE for a language model: any text round-trips, and equal texts give equal ids.

    It splits at newlines, each a token of its own, and before spaces. So `Background: …\\n\\n`, a prompt that
    ends in `A:`, and an answer that starts with a space, tokenised apart, give the joint text's tokens.
    """
    # Bytes are the alphabet, so no text has an unknown character.
    rust = tokenizers.Tokenizer(models.BPE())
    split_newlines = pre_tokenizers.Split("\n", "isolated")
    split_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.pre_tokenizer = pre_tokenizers.Sequence([split_newlines, split_bytes])
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(LM_SPECIALS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer)
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, **LM_SPECIALS))


def train_wordpiece(texts: Iterable[str], vocab_size: int, alphabet_size: int = 1000) -> Tokenizer:
    """BERT's uncased WordPiece, for an encoder that is trained from scratch."""
    texts = list(texts)
    letters = _frequent_letters(texts, alphabet_size)
    inner_letters = [f"##{letter}" for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers `##x` in the order of a hash map, which differs between processes, and breaks
        # ties by number. As special tokens they are numbered first, in this order.
        special_tokens=[*ENCODER_SPECIALS.values(), *letters, *inner_letters],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner = _wordpiece()
    learner.train_from_iterator(texts, trainer)
    # A new one with the learnt pieces: here the letters are no special tokens.
    rust = _wordpiece(learner.get_vocab())
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, **ENCODER_SPECIALS))


def _wordpiece(vocab: Mapping[str, int] | None = None) -> tokenizers.Tokenizer:
    """BERT's uncased tokeniser with the pieces of `vocab`; None: without any, to be trained."""
    unknown = ENCODER_SPECIALS["unk_token"]
    # `Tokenizer` itself adds [CLS] and [SEP].
    if vocab:
        rust = tokenizers.Tokenizer(models.WordPiece(dict(vocab), unk_token=unknown))
    else:
        rust = tokenizers.Tokenizer(models.WordPiece(unk_token=unknown))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    return rust


def _frequent_letters(texts: Iterable[str], limit: int) -> list[str]:
    """The most frequent characters of the normalised texts, sorted."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    letters = [letter for letter in counts if not letter.isspace()]
    # The letter itself decides between equal counts.
    letters.sort(key=lambda letter: (-counts[letter], letter))
    return sorted(letters[:limit])
