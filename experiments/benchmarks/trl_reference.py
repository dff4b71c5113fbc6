"""TRL's GRPOTrainer on the shapes of `grpo_step`, timed: the reference of that benchmark.

Run as a process of its own so that the two frameworks' threads never share cores:
`python -m experiments.benchmarks.trl_reference '{"prompts": 32, ...}'` prints one JSON line.
"""

import json
import sys
import tempfile
import time


def main(argv: list[str]) -> None:
    """Times TRL and prints `{"seconds": [...], "versions": {...}}`."""
    shapes = json.loads(argv[1])
    import torch
    import transformers
    import trl

    torch.set_num_threads(shapes["threads"])
    transformers.logging.set_verbosity_error()
    seconds = _time_trainer(shapes, transformers, trl)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, trl)}
    print(json.dumps({"seconds": seconds, "versions": versions}))


def _time_trainer(shapes: dict, transformers, trl) -> list[float]:
    """Seconds of each optimizer step after `warmup` ones."""
    from datasets import Dataset

    tokenizer = _tokenizer(shapes["vocabulary"], transformers)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shapes["vocabulary"],
            hidden_size=shapes["width"],
            intermediate_size=shapes["intermediate"],
            num_hidden_layers=shapes["layers"],
            num_attention_heads=shapes["heads"],
            num_key_value_heads=shapes["kv_heads"],
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    text = "".join(chr(0x4E00 + 3 + i % 10) for i in range(shapes["prompt_length"]))
    steps = shapes["warmup"] + shapes["repeats"]
    data = Dataset.from_dict({"prompt": [text] * (shapes["prompts"] * steps)})
    ends = []

    class Clock(transformers.TrainerCallback):
        """Notes when each optimizer step ends."""

        def on_step_end(self, *args, **kwargs):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as directory:
        arguments = trl.GRPOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=shapes["prompts"] * shapes["group_size"],
            num_generations=shapes["group_size"],
            max_completion_length=shapes["new_tokens"],
            max_steps=steps,
            beta=0.0,
            temperature=1.0,
            learning_rate=1e-4,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=_reward,
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    gaps = [b - a for a, b in zip(ends, ends[1:])]
    return gaps[shapes["warmup"] - 1 :]


def _reward(completions, **kwargs):
    """Share of one character: cheap, not constant within a group."""
    return [float(text.count(chr(0x4E00 + 5)) > 0) for text in completions]


def _tokenizer(vocabulary: int, transformers):
    """A character tokenizer of exactly `vocabulary` entries, with pad, bos and eos."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    table = {"<pad>": 0, "<s>": 1, "</s>": 2}
    table.update({chr(0x4E00 + i): i for i in range(3, vocabulary)})
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


if __name__ == "__main__":
    main(sys.argv)
