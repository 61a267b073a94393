"""A small Llama with random weights and its own tokenizer; run by the engine's Python, not by ours.

``python build_model.py FOLDER``. Its steps take as long as a trained model's of this size would:
what the weights are changes no time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 2000


def build(folder: Path) -> None:
    """Write the model and the tokenizer, of which every word between spaces is one token."""
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", "word"])}
    vocabulary |= {f"w{number}": number for number in range(len(vocabulary), WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
