"""The paper's run on all of GSM8K's training questions, with a small random checkpoint: does it go through, how fast.

    python -m tests.benchmarks.whole_gsm8k path/to/gsm8k --devices 1 4

gin/runs/lmsi_gsm8k.gin with 4 short paths a question in the place of 32, zero-shot, and a few updates; the folder holds
GSM8K's train.jsonl and test.jsonl. The model, a Llama of random numbers with a vocabulary learnt on the questions, is
made on the spot. Prints questions and tokens a second and the largest memory of the process, a line a mesh.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile

QUESTIONS = 7473
PIECES = 2048  # tokens of the vocabulary
TAUGHT = "Question: {question}\nAnswer: Let's think step by step. The answer is {number}.<|endoftext|>"
SETTINGS = {
    'STYLE': 'zero_shot_cot',
    'sampling.Sampler.samples': 4,
    'sampling.Sampler.max_tokens': 16,
    'unlabelled/feed.Feed.per_batch': 64,
    'learning.Supervised.steps': 4,
    'learning.Supervised.batch_rows': 8,
    'learning.Packing.rows': 32,  # those that are trained on
    'learning.Schedule.warmup': 1,
    'test/feed.Feed.per_round': 64,
    'partitioning.MeshShape.data': -1,
    'session.Place.mesh': '@partitioning.MeshShape()',
    'session.Place.tensorboard': False,
}


def make_checkpoint(folder: pathlib.Path, questions: list[str]) -> None:
    """A Llama of random numbers, 0.15 million, with a byte-level BPE vocabulary, as Hugging Face has them.

    It is taught for some steps to say that the answer is some digit: paths without answers would train nothing.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(questions, trainer)
    tokenizer.add_special_tokens(['<|endoftext|>'])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<|endoftext|>')
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    end = tokenizer.token_to_id('<|endoftext|>')
    config = transformers.LlamaConfig(vocab_size=PIECES, num_key_value_heads=1, eos_token_id=end, **sizes)
    model = transformers.LlamaForCausalLM(config)
    teach(model, tokenizer, questions)
    model.save_pretrained(folder)


def teach(model, tokenizer, questions: list[str], steps: int = 300) -> None:
    """Trains the model to answer any question with some digit."""
    import torch

    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=1e-2), random.Random(0)
    tokenizer.enable_padding()
    for _ in range(steps):
        texts = [TAUGHT.format(question=one, number=draw.randrange(1, 4)) for one in draw.sample(questions, 8)]
        rows = tokenizer.encode_batch(texts)
        tokens, mask = torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows])
        loss = model(tokens, attention_mask=mask, labels=tokens.where(mask > 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run(data: pathlib.Path, checkpoint: pathlib.Path, directory: pathlib.Path, devices: int) -> str:
    """Runs it on so many devices of the CPU; what was measured, in a line."""
    told = {**SETTINGS, 'CHECKPOINT': checkpoint, 'RUN_DIR': directory, 'session.Place.cpu_devices': devices}
    told |= {'TRAIN_FILE': data / 'train.jsonl', 'TEST_FILE': data / 'test.jsonl'}
    flags = [f'--gin.{name}={value}' for name, value in told.items()]
    command = [sys.executable, '-m', 't5x_selfimprove', 'improve', '--gin_file=gin/runs/lmsi_gsm8k.gin', *flags]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, 'TOKENIZERS_PARALLELISM': 'false'})
    events = [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]
    round_of = next(event for event in events if event['kind'] == 'round')
    seconds = round_of['seconds']['round']
    tokens = round_of['sampled_tokens'] + round_of['training_tokens']
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return (
        f'{devices} devices: {QUESTIONS:,} questions, {round_of["samples"]:,.0f} paths in {seconds:.1f} s; '
        f'{QUESTIONS / seconds:.0f} questions/s, {tokens / seconds:,.0f} tokens/s sampled and trained on; '
        f'{round_of["skipped_questions"]} too long; {peak:.2f} GiB at most so far'
    )


def main() -> None:
    """Runs what the arguments ask for, in a folder that is thrown away."""
    parser = argparse.ArgumentParser()
    parser.add_argument('data', type=pathlib.Path, help='with train.jsonl and test.jsonl of GSM8K')
    parser.add_argument('--devices', type=int, nargs='+', default=[1, 4])
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    with tempfile.TemporaryDirectory(prefix='whole_gsm8k_') as folder:
        checkpoint = pathlib.Path(folder, 'checkpoint')
        with (data / 'train.jsonl').open(encoding='utf-8') as lines:
            make_checkpoint(checkpoint, [json.loads(line)['question'] for line in lines])
        for devices in arguments.devices:
            print(run(data, checkpoint, pathlib.Path(folder, f'run_{devices}'), devices), flush=True)


if __name__ == '__main__':
    main()
