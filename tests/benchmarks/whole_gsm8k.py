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
import resource
import subprocess
import sys
import tempfile

QUESTIONS = 7473
PIECES = 4096  # tokens of the vocabulary
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


def make_checkpoint(folder: pathlib.Path, questions: pathlib.Path) -> None:
    """A random Llama of about 0.4 million parameters with a byte-level BPE vocabulary, as Hugging Face has them."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((json.loads(line)['question'] for line in questions.open(encoding='utf-8')), trainer)
    tokenizer.add_special_tokens(['<|endoftext|>'])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<|endoftext|>')
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {'hidden_size': 64, 'intermediate_size': 128, 'num_hidden_layers': 2, 'num_attention_heads': 4}
    end = tokenizer.token_to_id('<|endoftext|>')
    config = transformers.LlamaConfig(vocab_size=PIECES, num_key_value_heads=2, eos_token_id=end, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


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
        make_checkpoint(checkpoint, data / 'train.jsonl')
        for devices in arguments.devices:
            print(run(data, checkpoint, pathlib.Path(folder, f'run_{devices}'), devices), flush=True)


if __name__ == '__main__':
    main()
