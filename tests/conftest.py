"""What every test runs under: the CPU as eight devices, strict JAX, shapes and types checked on every call."""

import gc
import os
import pathlib
import sys

import pytest

from tests import quickly

# JAX reads these once, at its import.
if 'jax' in sys.modules:
    raise RuntimeError('jax was imported before tests/conftest.py could set its platform; see launch/test.sh')
os.environ['JAX_PLATFORMS'] = 'cpu'
# Eight devices on two cores: XLA's usual schedule starts collectives side by side, and may leave no thread to answer.
FLAGS = '--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS} {quickly.FLAGS}'.strip()
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

from t5x_selfimprove.main import settle_environment

settle_environment()

import jax
import jaxtyping

import tests.checking  # noqa: F401  (the import hook calls it by name)

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Calls of these have their annotations checked. Left out is `records`: JAX rebuilds records around leaves that are no
# arrays; `records.check` is called where arrays enter instead.
CHECKED = (
    't5x_selfimprove.ragged',
    't5x_selfimprove.partitioning',
    't5x_selfimprove.metrics',
    't5x_selfimprove.models',
    't5x_selfimprove.templates',
    't5x_selfimprove.sampling',
    't5x_selfimprove.consolidation',
    't5x_selfimprove.learning',
    't5x_selfimprove.tally',
    't5x_selfimprove.improve',
    't5x_selfimprove.evaluate',
    't5x_selfimprove.estimators',
    't5x_selfimprove.formats',
)
jaxtyping.install_import_hook(list(CHECKED), 'tests.checking.checked')


def pytest_configure(config: pytest.Config):
    jax.devices()  # which reads the flags. libtpu reads them later, and ends the process over one that it does not know
    os.environ['XLA_FLAGS'] = os.environ['XLA_FLAGS'].replace(f' {quickly.OLDER_EMITTER}', '')
    jax.config.update('jax_legacy_prng_key', 'error')  # typed keys only
    if config.pluginmanager.hasplugin('cacheprovider'):
        # A second run of the suite compiles little; so does the second of two processes.
        jax.config.update('jax_compilation_cache_dir', str(config.cache.mkdir('jax')))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='module', autouse=True)
def programs_are_let_go():
    """The programs that a file compiled go with it. Each maps memory in many pieces, and the kernel grants a process
    65,530 (vm.max_map_count): past them the compiler ends the process."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
    """The folder of public data sets beside the repository; tests that read them are skipped where it is not."""
    folder = ROOT.parent / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip(f'no public data sets at {folder}')
    return folder
