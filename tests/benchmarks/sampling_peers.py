"""The other arms of `sampling`: what a user could pick instead of our sampler.

    transformers                  `generate` as people call it, num_return_sequences = N; a stopping criterion a path
                                  where lengths are spread
    transformers, prefix reused   the prefix read once, each question once, the caches repeated for the paths
    Tunix                         its vanilla sampler on N copies of every prompt; a path cannot be stopped but by its
                                  end, so that spread lengths all run to the longest
    llama.cpp, unified            float32 weights; paths share the cells of their prompt; a path leaves when it ends
    llama.cpp, streams            the same with a cache for each path, into which the prompt's is copied

Each reads the same directory. Packages are imported where they are used: this file runs in another interpreter than
ours (`--peers-python`), which has no jax but Tunix's.
"""

import importlib.metadata
import json
import os
import pathlib
from typing import Any

import numpy as np

from tests.benchmarks.sampling_workloads import SHOWN, TEMPERATURE, Sizes, Workload, model_directory
from tests.benchmarks.turns import LeftOut


def packages(*names: str) -> dict[str, str]:
    """Versions of the packages that are measured. Raises LeftOut where one is not installed."""
    try:
        return {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as error:
        raise LeftOut(f'{error.name} is not installed in this interpreter') from error


class Transformers:
    """`generate` of transformers. Its first turn has no more to do than the later ones: nothing is compiled."""

    reuse = False

    def __init__(self, directory: str, workload: Workload):
        """Loads the model."""
        self.facts = {'packages': packages('torch', 'transformers'), 'compile_seconds': 0.0}
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        self.torch, self.transformers, self.workload = torch, transformers, workload
        path = model_directory(directory)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.rows = torch.from_numpy(workload.rows_of(Sizes().vocabulary).astype(np.int64))
        self.generate(self.rows[: workload.samples, -2:], 1, 2, None)  # allocators, threads and kernels are warm
        with torch.inference_mode():
            self.facts['logits'] = self.model(self.rows[:1]).logits[0, -1, :SHOWN].tolist()

    def criteria(self) -> Any:
        """What stops each path at its length, with the checks that `generate` makes after every token."""
        lengths = self.torch.from_numpy(self.workload.lengths + self.rows.shape[1])

        class Reached(self.transformers.StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                return lengths <= input_ids.shape[1]

        return self.transformers.StoppingCriteriaList([Reached()] if self.workload.least else [])

    def generate(self, rows: Any, copies: int, room: int, cache: Any, criteria: Any = None) -> Any:
        """Tokens drawn after the rows, `copies` times each, [rows * copies, room]."""
        distribution = {'do_sample': True, 'temperature': TEMPERATURE, 'top_k': 0, 'top_p': 1.0}
        drawn = self.model.generate(
            rows,
            attention_mask=self.torch.ones_like(rows),
            max_new_tokens=room,
            num_return_sequences=copies,
            past_key_values=cache,
            stopping_criteria=criteria,
            eos_token_id=None,
            pad_token_id=0,
            **distribution,
        )
        return drawn[:, rows.shape[1] :]

    def __call__(self) -> dict[str, Any]:
        """Draws all paths."""
        with self.torch.inference_mode():
            drawn = self.draw()
        longest = int(self.workload.lengths.max())
        if tuple(drawn.shape) != (self.workload.rows, longest):
            raise RuntimeError(f'{tuple(drawn.shape)} tokens were drawn, not {(self.workload.rows, longest)}')
        return {'tokens': self.workload.generated}

    def draw(self) -> Any:
        """The call of `generate`."""
        copies = self.workload.samples
        return self.generate(self.rows[::copies], copies, self.workload.room, None, self.criteria())


class TransformersReused(Transformers):
    """`generate` on caches that were made once and repeated."""

    def draw(self) -> Any:
        """Prefix, questions without their last token, then `generate` on all paths."""
        workload, copies = self.workload, self.workload.samples
        cache = self.transformers.DynamicCache(config=self.model.config)
        prompts = self.rows[::copies]
        if workload.prefix:
            self.model(prompts[:1, : workload.prefix], past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(workload.questions)
        self.model(prompts[:, workload.prefix : -1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(copies)
        return self.generate(self.rows, 1, workload.room, cache, self.criteria())


class Numbers:
    """A tokenizer for Tunix, which takes texts: token ids written as numbers."""

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return ' '.join(str(int(token)) for token in ids)

    def bos_id(self) -> int:
        return 0  # none

    def eos_id(self) -> int:
        return Sizes().vocabulary  # no token: nothing ends early

    def pad_id(self) -> int:
        return 0


class Tunix:
    """The sampler of Tunix, compiled for the workload's shapes at the first call."""

    def __init__(self, directory: str, workload: Workload):
        """Loads the model and draws once."""
        self.facts = {'packages': packages('google-tunix', 'jax')}
        import time

        import jax
        import jax.numpy as jnp
        from tunix.generate.sampler import CacheConfig, Sampler
        from tunix.models.qwen3 import model, params

        sizes = Sizes()
        config = model.ModelConfig(
            num_layers=sizes.layers,
            vocab_size=sizes.vocabulary,
            embed_dim=sizes.width,
            hidden_dim=sizes.feed_forward,
            num_heads=sizes.heads,
            head_dim=sizes.head_size,
            num_kv_heads=sizes.kv_heads,
            rope_theta=1_000_000,
            norm_eps=1e-6,
            use_tied_embedding=True,
        )
        mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        loaded = params.create_model_from_safe_tensors(model_directory(directory), config, mesh, jnp.float32)
        self.workload, self.seed = workload, 0
        self.prompt = workload.prefix + workload.question
        room = self.prompt + workload.room
        self.sampler = Sampler(loaded, Numbers(), CacheConfig(room, sizes.layers, sizes.kv_heads, sizes.head_size))
        self.texts = [' '.join(map(str, row)) for row in workload.rows_of(sizes.vocabulary)]
        whole = jnp.asarray(workload.rows_of(sizes.vocabulary)[:1])
        place = jnp.arange(self.prompt)
        logits, _ = loaded(whole, place[None], None, (place[:, None] >= place)[None])
        self.facts['logits'] = logits[0, -1, :SHOWN].tolist()
        start = time.perf_counter()
        self()
        # With a run of the program in it; the report takes the median of the turns off.
        self.facts['first_call_seconds'] = time.perf_counter() - start

    def __call__(self) -> dict[str, Any]:
        """Draws all paths, the longest length of each."""
        self.seed += 1
        drawn = self.sampler(
            self.texts,
            max_generation_steps=self.workload.room,
            max_prompt_length=self.prompt,
            temperature=TEMPERATURE,
            top_p=1.0,
            seed=self.seed,
        )
        shortest = min(len(tokens) for tokens in drawn.tokens)
        if shortest < self.workload.lengths.max():
            raise RuntimeError(f'a path has {shortest} tokens')
        return {'tokens': self.workload.generated}


def write_gguf(source: str, target: pathlib.Path) -> None:
    """The model's directory as the file that llama.cpp reads, float32."""
    import gguf
    from safetensors.numpy import load_file

    values = json.loads(pathlib.Path(source, 'config.json').read_text())
    architecture, sizes = gguf.MODEL_ARCH.QWEN3, Sizes()
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(8192)
    writer.add_embedding_length(sizes.width)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.feed_forward)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_size)
    writer.add_value_length(sizes.head_size)
    writer.add_layer_norm_rms_eps(values['rms_norm_eps'])
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_tokenizer_model('none')
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    names = gguf.get_tensor_name_map(architecture, sizes.layers)
    for name, tensor in load_file(pathlib.Path(source, 'model.safetensors')).items():
        writer.add_tensor(names.get_name(name, try_suffixes=('.weight',)), tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp through its C interface: all living paths in one batch at each step, each drawn by a sampler chain."""

    unified = True

    def __init__(self, directory: str, workload: Workload):
        """Loads the model, converted once, and makes the context."""
        self.facts = {'packages': packages('llama-cpp-python', 'gguf'), 'compile_seconds': 0.0}
        import llama_cpp

        self.library, self.workload = llama_cpp, workload
        file = pathlib.Path(directory, f'model-{os.getpid()}.gguf')
        write_gguf(model_directory(directory), file)
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept: C calls it
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        file.unlink()  # it stays mapped
        start, rows, threads = workload.prefix + workload.question, workload.rows, len(os.sched_getaffinity(0))
        options = llama_cpp.llama_context_default_params()
        # Unified: cells of the prefix, the questions and the paths; streams: as many cells for every sequence.
        shared = workload.prefix + workload.questions * workload.question + rows * workload.room
        each = -(-(start + workload.room) // 256) * 256  # of a stream, a multiple of 256
        options.n_ctx = shared if self.unified else rows * each
        options.n_batch = options.n_ubatch = 512
        options.n_seq_max, options.kv_unified = rows, self.unified
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.samplers = [self.sampler(seed) for seed in range(rows)]
        self.rows = workload.rows_of(Sizes().vocabulary)
        self.read(self.rows[0], 0, 0)  # allocators and threads are warm
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        self.facts['logits'] = [float(logits[token]) for token in range(SHOWN)]

    def sampler(self, seed: int) -> Any:
        """Temperature, then a draw."""
        chain = self.library.llama_sampler_chain_init(self.library.llama_sampler_chain_default_params())
        self.library.llama_sampler_chain_add(chain, self.library.llama_sampler_init_temp(TEMPERATURE))
        self.library.llama_sampler_chain_add(chain, self.library.llama_sampler_init_dist(seed))
        return chain

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Reads (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for place, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
        status = self.library.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f'llama_decode answered {status}')

    def read(self, tokens: Any, first: int, sequence: int) -> None:
        """Reads text of one sequence from a position on; logits after its last token."""
        last = len(tokens) - 1
        entries = [(int(token), first + n, sequence, n == last) for n, token in enumerate(tokens)]
        for start in range(0, len(entries), 512):
            self.decode(entries[start : start + 512])

    def copy(self, source: int, target: int) -> None:
        """Gives a sequence what another has read: the same cells if unified, else a copy."""
        self.library.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def __call__(self) -> dict[str, Any]:
        """Draws all paths. The prefix is read by the first sequence, a question by the first of its paths."""
        workload, copies = self.workload, self.workload.samples
        self.library.llama_memory_clear(self.memory, False)
        tokens = np.zeros(workload.rows, int)
        if workload.prefix:
            self.read(self.rows[0, : workload.prefix], 0, 0)
        leaders = range(0, workload.rows, copies)
        if workload.prefix:
            for leader in leaders[1:]:
                self.copy(0, leader)
        for leader in leaders:
            self.read(self.rows[leader, workload.prefix :], workload.prefix, leader)
            for path in range(leader, leader + copies):
                tokens[path] = self.draw(path, -1)
                if path != leader:
                    self.copy(leader, path)
        drawn, living = np.ones(workload.rows, int), [n for n in range(workload.rows) if workload.lengths[n] > 1]
        while living:
            at = workload.prefix + workload.question - 1
            self.decode([(int(tokens[path]), at + int(drawn[path]), path, True) for path in living])
            for place, path in enumerate(living):
                tokens[path] = self.draw(path, place)
            drawn[living] += 1
            for path in living:
                if drawn[path] == workload.lengths[path]:
                    self.library.llama_memory_seq_rm(self.memory, path, -1, -1)
            living = [path for path in living if drawn[path] < workload.lengths[path]]
        return {'tokens': int(drawn.sum())}

    def draw(self, path: int, place: int) -> int:
        """A token of a path from the logits at a place of the last batch."""
        return self.library.llama_sampler_sample(self.samplers[path], self.context, place)


class LlamaCppStreams(LlamaCpp):
    """A cache for each path."""

    unified = False


ARMS = {
    'transformers': Transformers,
    'transformers, prefix reused': TransformersReused,
    'Tunix': Tunix,
    'llama.cpp, unified': LlamaCpp,
    'llama.cpp, streams': LlamaCppStreams,
}
