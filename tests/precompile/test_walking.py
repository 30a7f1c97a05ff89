"""A compiled program read from its text: loops, operations, bytes and collectives counted by hand."""

import pathlib
import types

import jax
import numpy as np
import pytest

from t5x_selfimprove.partitioning import MeshShape
from t5x_selfimprove.precompile import collectives, counting, hlo, walking

TEXT = (pathlib.Path(__file__).parent / 'loop.txt').read_text(encoding='utf-8')


STEPS = walking.Steps(total=100, period=16, slots=8)


def mesh() -> jax.sharding.Mesh:
    return MeshShape(1, 4, 2).build()


def test_a_loop_is_counted_as_often_as_it_goes_round():
    found = walking.costs(TEXT, mesh(), STEPS)
    learning = found.phases['learning']
    assert learning.flops == 7 * 2 * 8 * 4 * 4  # 2, 4, ..., 14
    # The product, the sum over devices, of the stack one row, and the counter: added to and compared.
    assert learning.hbm_bytes == 7 * ((128 + 64 + 128) + 2 * 128 + 2 * 128 + 12 + 9)
    (exchange,) = learning.collectives
    assert (exchange.kind, exchange.axes, exchange.size, exchange.bytes) == ('all-reduce', ('tensor',), 2, 128)
    assert learning.collectives[exchange] == 7
    assert (found.bounded, found.unread) == ({}, [])
    assert all(found.phases[name].flops == 0 for name in walking.PHASES if name != 'learning')


def test_a_loop_that_data_may_end_is_counted_at_its_most():
    both = '%alive = pred[] constant(true)\n  %less = pred[] compare(%number, %limit), direction=LT\n'
    text = TEXT.replace(
        'ROOT %less = pred[] compare(%number, %limit), direction=LT\n',
        f'{both}  ROOT %both = pred[] and(%less, %alive)\n',
    )
    found = walking.costs(text.replace('learning', 'sampling'), mesh(), STEPS)
    assert found.bounded == {'loop': 7}
    assert found.phases['decoding'].flops == 7 * 2 * 8 * 4 * 4 and found.phases['prefill'].flops == 0


FUSED = """%compared (a: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %most = s32[] constant(16)
  ROOT %lower = pred[] compare(%a, %most), direction=LT
}

%added (b: s32[]) -> s32[] {
  %b = s32[] parameter(0)
  %three = s32[] constant(3)
  ROOT %more = s32[] add(%b, %three)
}

%body"""


def test_a_loop_whose_comparison_is_fused_as_for_gpus():
    text = TEXT.replace('%body', FUSED, 1)
    text = text.replace('compare(%number, %limit), direction=LT', 'fusion(%number), kind=kLoop, calls=%compared')
    text = text.replace('%next = s32[] add(%number, %two)', '%next = s32[] fusion(%number), kind=kLoop, calls=%added')
    found = walking.costs(text, mesh(), STEPS)
    assert found.phases['learning'].flops == 5 * 2 * 8 * 4 * 4  # 2, 5, ..., 14
    assert (found.bounded, found.unread) == ({}, [])


def test_a_loop_that_cannot_be_read_is_told():
    found = walking.costs(TEXT.replace('direction=LT', 'direction=NE'), mesh(), STEPS)
    assert found.unread == ['loop'] and found.phases['learning'].flops == 2 * 8 * 4 * 4


def test_a_loop_of_decoding_that_data_alone_ends_takes_the_steps_of_the_sampler():
    found = walking.costs(TEXT.replace('direction=LT', 'direction=NE').replace('learning', 'sampling'), mesh(), STEPS)
    assert found.unread == [] and found.bounded == {'loop': 100}
    assert found.phases['decoding'].flops == 100 * 2 * 8 * 4 * 4


SPARSE = """%taken.fused (t: f32[64,16], i: s32[4]) -> f32[4,16] {
  %t = f32[64,16] parameter(0)
  %i = s32[4] parameter(1)
  ROOT %rows = f32[4,16] gather(%t, %i), offset_dims={1}
}, execution_thread="sparsecore"

%taken (u: f32[64,16], j: s32[4]) -> f32[4,16] {
  %u = f32[64,16] parameter(0)
  %j = s32[4] parameter(1)
  ROOT %gathered = f32[4,16] fusion(%u, %j), kind=kCustom, calls=%taken.fused
}, execution_thread="sparsecore"

%wrapped (v: f32[64,16], k: s32[4]) -> f32[4,16] {
  %v = f32[64,16] parameter(0)
  %k = s32[4] parameter(1)
  ROOT %custom = f32[4,16] custom-call(%v, %k), custom_call_target="offloaded", called_computations={%taken}
}, execution_thread="sparsecore"

ENTRY %main (table: f32[64,16], ids: s32[4]) -> f32[4,16] {
  %table = f32[64,16] parameter(0)
  %ids = s32[4] parameter(1)
  %started = ((f32[64,16], s32[4]), f32[4,16], u32[]) async-start(%table, %ids), calls=%wrapped
  ROOT %done = f32[4,16] async-done(%started)
}
"""


def test_a_gather_that_a_sparse_core_does_takes_its_rows_alone():
    found = walking.costs(SPARSE, mesh(), STEPS)
    assert found.phases['between'].hbm_bytes == 2 * 4 * 16 * 4 + 4 * 4  # rows read and written, and their numbers


SCATTER = """%all-reduce-scatter.1 (whole: f32[64,16]) -> f32[16,16] {
  %whole = f32[64,16] parameter(0)
  %sum = f32[64,16] all-reduce(%whole), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%added
  %place = s32[] constant(0)
  ROOT %part = f32[16,16] dynamic-slice(%sum, %place, %place), dynamic_slice_sizes={16,16}
}

ENTRY %main (gradient: f32[64,16]) -> f32[16,16] {
  %gradient = f32[64,16] parameter(0)
  ROOT %kept = f32[16,16] fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_reduce_scatter_that_is_written_as_a_fusion():
    (exchange,) = walking.costs(SCATTER, mesh(), STEPS).phases['between'].collectives
    assert (exchange.kind, exchange.axes, exchange.size) == ('reduce-scatter', ('fsdp',), 4)
    assert exchange.bytes == 3 / 4 * 64 * 16 * 4


def test_lines_that_a_kernel_says_of_itself_belong_to_it():
    computation = hlo.parse(TEXT).computations['kernel']
    assert [each.name for each in computation.instructions] == ['a', 'called']
    assert computation.root.scope == 'kernel'


def computation_of(name: str, *lines: str) -> hlo.Computation:
    return hlo.Computation(name, tuple(hlo.instruction(line) for line in lines))


def instructions(*lines: str) -> tuple[hlo.Program, hlo.Computation]:
    computation = computation_of('f', *lines)
    return hlo.Program({'f': computation}, 'f'), computation


ALONG, BATCH = 'size=4 pad=3_3 rhs_reversal=1', 'size=4 stride=3 pad=0_0 lhs_dilate=4'


@pytest.mark.parametrize(
    ('left', 'right', 'out', 'rest', 'operations'),
    [
        ('11,4096', '4096,128', '11,128', 'dim_labels=bf_io->bf', 2 * 11 * 4096 * 128),
        # [11, 64] times [64, 4, 128]: the 4 lie along a window whose padding meets nothing
        ('1,11,64', '4,64,128', '11,4,128', f'window={{{ALONG}}}, dim_labels=0bf_0io->b0f', 2 * 11 * 64 * 4 * 128),
        # a batch of 4 products [5, 6] times [6, 7]
        ('4,5,6', '4,7,6', '4,5,7', f'window={{{BATCH}}}, dim_labels=0bf_0oi->0bf', 2 * 4 * 5 * 6 * 7),
    ],
)
def test_operations_of_products_that_are_convolutions(left, right, out, rest, operations):
    program, computation = instructions(
        f'%l = bf16[{left}] parameter(0)',
        f'%r = bf16[{right}] parameter(1)',
        f'ROOT %c = f32[{out}] convolution(%l, %r), {rest}',
    )
    assert counting.operations(program, computation, computation.root) == operations


def test_fast_memory_is_not_counted_and_of_slices_only_the_slices():
    program, computation = instructions(
        '%a = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)',
        '%b = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)',
        '%i = s32[] parameter(2)',
        '%s = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%a, %i), dynamic_slice_sizes={1,8,128}',
        'ROOT %m = bf16[8,128]{1,0:T(8,128)(2,1)} multiply(%b, %b)',
    )
    counted = {each.name: counting.traffic(program, computation, each) for each in computation.instructions}
    assert counted['s'] == 2 * 2048 and counted['m'] == 2048 and counted['a'] == 0


def test_of_a_stack_of_layers_a_fusion_reads_the_layer_that_a_fusion_inside_it_takes():
    inner = computation_of(
        'inner',
        '%p = bf16[32,8,128] parameter(0)',
        '%i = s32[] parameter(1)',
        'ROOT %s = bf16[1,8,128] dynamic-slice(%p, %i), dynamic_slice_sizes={1,8,128}',
    )
    outer = computation_of(
        'outer',
        '%q = bf16[32,8,128] parameter(0)',
        '%j = s32[] parameter(1)',
        'ROOT %f = bf16[1,8,128] fusion(%q, %j), kind=kLoop, calls=%inner',
    )
    program, computation = instructions(
        '%a = bf16[32,8,128] parameter(0)',
        '%n = s32[] parameter(1)',
        'ROOT %b = bf16[1,8,128] fusion(%a, %n), kind=kOutput, calls=%outer',
    )
    program = hlo.Program({'f': computation, 'inner': inner, 'outer': outer}, 'f')
    assert counting.traffic(program, computation, computation.root) == 2 * 2048 + 4  # read, written, and the number


@pytest.mark.parametrize(
    ('kernel', 'out', 'operations'),
    [
        ('fwd', '(f32[2,128], bf16[2,4,256,64])', 2 * 2 * 4 * 256 * 256 * 64),
        ('dkv', '(bf16[2,1,256,64], bf16[2,1,256,64])', 5 * 2 * 4 * 256 * 256 * 64),
        ('dq', '(f32[2,128], bf16[2,4,256,64])', 3 * 2 * 4 * 256 * 256 * 64),
        ('row', 'f32[2]', 0),
    ],
)
def test_operations_of_the_attention_kernel(kernel, out, operations):
    program, computation = instructions(
        '%q = bf16[2,4,256,64] parameter(0)',
        '%k = bf16[2,1,256,64] parameter(1)',
        f'ROOT %splash_mha_{kernel}.1 = {out} custom-call(%q, %k), custom_call_target="tpu_custom_call"',
    )
    assert counting.operations(program, computation, computation.root) == operations


def test_a_buffer_that_is_only_reserved_moves_nothing():
    program, computation = instructions('ROOT %b = f32[8,128] custom-call(), custom_call_target="AllocateBuffer"')
    assert counting.traffic(program, computation, computation.root) == 0


def test_operations_of_a_product_that_cublas_computes():
    config = '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    program, computation = instructions(
        '%l = bf16[4,8] parameter(0)',
        '%r = bf16[8,16] parameter(1)',
        'ROOT %c = (bf16[4,16], s8[4096]) custom-call(%l, %r), custom_call_target="__cublas$gemm", '
        f'backend_config={config}',
    )
    assert counting.operations(program, computation, computation.root) == 2 * 4 * 16 * 8


@pytest.mark.parametrize(
    ('attributes', 'groups'),
    [
        ('replica_groups=[2,4]<=[8], x', [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ('replica_groups=[2,4]<=[4,2]T(1,0), x', [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}, x", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, x", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ('replica_groups={{0,3},{1,2}}, x', [[0, 3], [1, 2]]),
        ('replica_groups={}, x', [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ('source_target_pairs={{0,1},{1,0},{2,2}}, x', [[0, 1], [1, 0]]),
    ],
)
def test_who_exchanges_with_whom(attributes, groups):
    assert collectives.groups_of(attributes, 8).tolist() == groups


def test_the_axes_of_groups():
    sizes = (('data', 2), ('fsdp', 2), ('tensor', 2))
    axes = lambda *groups: collectives.axes_of(np.array(groups), sizes)  # noqa: E731
    assert axes([0, 1], [2, 3]) == ('tensor',)
    assert axes([0, 2], [1, 3]) == ('fsdp',)
    assert axes([0, 1, 4, 5]) == ('data', 'tensor')


@pytest.mark.parametrize(
    ('opcode', 'sent'),
    [
        ('all-reduce', 2 * 1024 * 3 / 4),
        ('all-gather', 1024 * 3 / 4),
        ('reduce-scatter', 1024 * 3),
        ('all-to-all', 1024 * 3 / 4),
    ],
)
def test_bytes_that_a_device_sends(opcode, sent):
    line = f'%c = f32[256] {opcode}(%a), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0)'
    found = collectives.collective(hlo.instruction(line), mesh())
    assert (found.axes, found.bytes) == (('fsdp',), sent)
    operand = 4 * 256 if opcode == 'reduce-scatter' else 64  # elements of what goes in, where a start gives it, too
    started = line.replace('f32[256]', f'(f32[{operand}], f32[256])').replace(opcode, f'{opcode}-start')
    assert collectives.collective(hlo.instruction(started), mesh()) == found
    assert collectives.collective(hlo.instruction(line.replace('[2,4]<=[4,2]T(1,0)', '[8,1]<=[8]')), mesh()) is None


def devices(platform: str, places: list[tuple[int, int, int]]) -> np.ndarray:
    """Stand-ins for devices: slice, host and coordinates of each."""
    found = [
        types.SimpleNamespace(platform=platform, slice_index=part, process_index=host, coords=(x, 0, 0))
        for part, host, x in places
    ]
    return np.array(found).reshape(2, 2)


@pytest.mark.parametrize(
    ('platform', 'places', 'share'),
    [
        ('gpu', [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 3)], {'data': None, 'tensor': 1.0}),
        ('tpu', [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 3)], {'data': 1 / 3, 'tensor': 1 / 3}),
        ('tpu', [(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)], {'data': None, 'tensor': 1 / 3}),
    ],
)
def test_links_within_hosts_of_gpus_and_slices_of_tpus(platform, places, share):
    there = devices(platform, places)
    for axis, wanted in share.items():
        assert walking.links_used(there, (axis,), ('data', 'tensor'), torus=3) == wanted
