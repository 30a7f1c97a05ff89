"""The command `precompile`: a tiny run compiled for four TPUs that are not there; what does not fit or divide."""

import dataclasses
import itertools
import json
import re
import types

import jax
import numpy as np
import pytest

from t5x_selfimprove.partitioning import MESH_AXES, MeshShape, slice_of
from t5x_selfimprove.precompile import knobs, program, report, walking
from t5x_selfimprove.precompile.chips import Topology
from t5x_selfimprove.train import Improve
from tests import tiny_run

SETTINGS = {
    'precompile__Precompile__topology': 'v5e:2x2',
    'partitioning__MeshShape__data': 1,
    'partitioning__MeshShape__fsdp': 2,
    'partitioning__MeshShape__tensor': 2,
    'models__TransformerConfig__embedding_rows': 256,
    'sampling__Sampler__max_tokens': 6,
}


class Full:
    """A compiled program that needs more than there is."""

    program, text, seconds, steps = None, '', 1.0, None
    memory = types.MappingProxyType({'total': 10**12})


def arguments(**bindings) -> list[str]:
    return tiny_run.improve_arguments('run', 'nowhere', 'precompile', **{**SETTINGS, **bindings})


@pytest.fixture
def topology() -> Topology:
    """Four TPUs, where libtpu can compile for them."""
    pytest.importorskip('libtpu', reason='libtpu, which compiles for TPUs, is not installed')
    asked = Topology('v5e:2x2')
    try:
        asked.devices()
    except RuntimeError as error:
        pytest.skip(str(error))
    return asked


def test_slices_lie_along_the_axis_that_is_asked_for(topology):
    two = Topology('v5e:2x2', slices=2)
    for axis, shape in (('data', MeshShape(2, 2, 2)), ('fsdp', MeshShape(1, 4, 2, between_slices='fsdp'))):
        devices = np.moveaxis(shape.build(two.devices()).devices, MESH_AXES.index(axis), 0)
        half = len(devices) // 2
        slices = [{slice_of(device) for device in part.ravel()} for part in (devices[:half], devices[half:])]
        assert slices == [{0}, {1}]
    with pytest.raises(ValueError, match='2 slices lie along data and data = 1 does not divide by 2'):
        MeshShape(1, 4, 2).build(two.devices())


def test_neighbours_in_the_mesh_are_neighbours_in_the_torus(topology):
    devices = MeshShape(1, 8, 8).build(Topology('v5e-64').devices()).devices[0, :, 0, 0, :]
    apart = lambda one, other: sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))  # noqa: E731
    assert {apart(*pair) for line in (*devices, *devices.T) for pair in itertools.pairwise(line)} == {1}


def test_a_run_compiled_for_a_pod(tmp_path, monkeypatch, topology):
    monkeypatch.chdir(tmp_path)
    outcome = tiny_run.done(arguments(precompile__Precompile__output=tmp_path / 'out'))
    assert 'fits: ' in outcome.out and '15.8 GiB of HBM that a device of v5e:2x2 has' in outcome.out
    found = json.loads((tmp_path / 'out' / 'precompile.json').read_text())
    memory, phases = found['memory'], found['phases']
    assert found['fits'] and found['mesh'] == {'data': 1, 'fsdp': 2, 'expert': 1, 'sequence': 1, 'tensor': 2}
    assert memory['optimizer'] > 2 * memory['parameters'] > 0  # two moments
    kinds = ('parameters', 'optimizer', 'base', 'other arguments', 'new outputs', 'temporaries', 'program')
    assert memory['total'] == sum(memory[kind] for kind in kinds) == found['needed_bytes']
    # A batch of 8 questions x 4 samples takes at most 6 steps, the two batches of a round twice that.
    assert set(found['loops']['counted at their most'].values()) == {6} and found['loops']['counted once'] == []
    width, rows = 16, 256
    head = 2 * (8 * tiny_run.SAMPLES // 2) * width * (rows // 2)  # a device has half of the rows and of the embedding
    assert phases['decoding']['flops'] > 2 * 6 * head
    exchanged = {(each['kind'], *each['axes']) for each in phases['learning']['collectives']}
    assert ('all-reduce', 'tensor') in exchanged and ('all-gather', 'fsdp') in exchanged
    assert 0 < found['seconds_per_round'] < found['seconds_per_round_without_overlap']
    # The weights are not gathered over `tensor` in decoding, and the embedding is looked up where it lies.
    gathered = [each for each in phases['decoding']['collectives'] if each['kind'] == 'all-gather']
    assert all(each['bytes'] < rows * width for each in gathered), gathered
    assert (tmp_path / 'out' / 'round.jax').stat().st_size > 10_000
    assert not (tmp_path / 'run').exists()


def test_a_run_compiled_for_gpus(tmp_path, monkeypatch):
    """Where jax's plug-in for CUDA is installed, beside no GPU."""
    try:
        Topology('h100-4').devices()
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    places = {'precompile__Precompile__topology': 'h100:2x2', 'precompile__Precompile__output': tmp_path / 'out'}
    outcome = tiny_run.done(arguments(**places))
    assert 'fits: ' in outcome.out and '59.3 GiB of HBM that a device of h100:2x2 has' in outcome.out
    found = json.loads((tmp_path / 'out' / 'precompile.json').read_text())
    assert set(found['loops']['counted at their most'].values()) == {6} and found['loops']['counted once'] == []
    learning = found['phases']['learning']
    assert learning['seconds']['network'] > 0 and learning['seconds']['links'] > 0  # fsdp over hosts, tensor inside
    assert (tmp_path / 'out' / 'round.jax').stat().st_size > 10_000


def test_what_is_compiled_for_gpus_and_does_not_fit(monkeypatch):
    """The compiler for GPUs compiles what does not fit; the verdict is ours, and the knobs are turned."""
    monkeypatch.setattr(report.program, 'compile_round', lambda run, mesh: Full())
    monkeypatch.setattr(Topology, 'devices', lambda self: jax.devices()[:4])
    monkeypatch.setattr(report.walking, 'costs', lambda *_: walking.Costs({}, {}, []))
    monkeypatch.setattr(report, 'show', lambda *_: None)
    command = dataclasses.replace(tiny_run.built(arguments()).value, topology='h100-4', tries=2)
    found = command.run('')
    assert not found['fits'] and found['needed_bytes'] == 10**12 and 'program' not in found
    assert [each['fits'] for each in found['tried']] == [False, False]
    assert found['attention'].startswith('plain here')


@pytest.mark.parametrize(
    ('bindings', 'said'),
    [
        ({'partitioning__MeshShape__fsdp': 3}, r'does not fit 4 devices: 1 x 3 x 1 x 1 x 2 = 6'),
        ({'models__TransformerConfig__embedding_rows': 0}, r"'vocabulary' of size \d+ cannot be split into 2 equal"),
        ({'unlabelled/feed.Feed.per_batch': 1}, r'1 questions at a time cannot be split over .* = 2 devices'),
    ],
    ids=['mesh', 'vocabulary', 'batch'],
)
def test_what_cannot_be_divided_is_refused_before_it_is_compiled(topology, bindings, said):
    outcome = tiny_run.run(arguments(**bindings))
    assert outcome.code == 2
    assert re.search(said, outcome.err), outcome.err


def settings() -> Improve:
    return tiny_run.built(arguments()).value.improve


def test_what_is_turned_where_a_round_does_not_fit():
    run = settings()
    mesh = run.place.mesh.build(jax.devices()[:4])
    names = [knob.name for knob in knobs.knobs(run, mesh)]
    assert names == [
        "remat = 'full'",
        'per_batch = 2 questions at a time',
        'accumulate = 4 parts of a batch',
        'all of them',
        "all of them and weights = 'int8' in sampling",
        "all of them and weights, cache = 'int8' in sampling",
    ]
    last = list(knobs.knobs(run, mesh))[-1].run
    assert (last.model.remat, last.questions.per_batch, last.recipe.learner.accumulate) == ('full', 2, 4)
    assert last.recipe.sampler.weights == last.recipe.sampler.cache == 'int8'
    untouched = dataclasses.replace(last, model=run.model, questions=run.questions, recipe=run.recipe)
    assert untouched == run


def test_what_the_compiler_says_of_memory():
    said = 'the total memory required for HLO temporaries (23.37G) exceeds available HBM (15.75G). HLO module: jit_f.'
    assert program.needed_bytes(said) == 23.37 * 2**30
    assert program.needed_bytes('Ran out of memory in memory space hbm. Used 17.5G of 15.75G hbm.') == 17.5 * 2**30
    assert program.needed_bytes('something else') is None
