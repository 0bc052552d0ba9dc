"""Prompts and what tools say are encoded at the same time, by threads that share a tokenizer."""

from concurrent.futures import ThreadPoolExecutor

from learners.policy.loading import load_model
from learners.rollouts.encoding import encode, encode_prompt

PROMPT = [{"role": "user", "content": "What is the age of Ada Adler?"}]
SAID = "the page says <|end|> and goes on"


def test_threads_do_not_change_what_special_tokens_mean_to_each_other():
    """Without a lock a prompt's markers came out as letters, or a page ended the turn."""
    tokenizer = load_model("tiny").tokenizer
    prompt, said = encode_prompt(tokenizer, PROMPT), encode(tokenizer, SAID, trusted=False)
    assert tokenizer.eos_token_id not in said
    assert tokenizer.eos_token_id in encode(tokenizer, SAID)

    def one(number):
        if number % 2:
            return encode_prompt(tokenizer, PROMPT) == prompt
        return encode(tokenizer, SAID, trusted=False) == said

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(20_000)))
