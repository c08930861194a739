"""Word-level tokenizers in the standard format; every language of ours begins with these ids."""

from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)


def number_words(words: Iterable[str]) -> dict[str, int]:
    """Ids of the special tokens and of ``words``, in this order."""
    return {word: id for id, word in enumerate([*SPECIAL_TOKENS, *words])}


def word_level_tokenizer(
    vocabulary: Mapping[str, int], *, max_length: int
) -> PreTrainedTokenizerFast:
    """Splits at spaces; words outside become ``<unk>``. Adds no special tokens itself."""
    words = Tokenizer(WordLevel(dict(vocabulary), unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
