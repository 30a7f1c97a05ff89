"""Checkpoints in Amazon S3 and what speaks its protocol, which Orbax 0.12 has no words for: it writes arrays to folders
and to gs:// (https://github.com/google/orbax/pull/2739).

What is missing is little. Orbax asks one function of its own where the arrays are, and that knows no `s3` driver, which
tensorstore has; etils reads the other files by TensorFlow where that is installed, whose packages have no S3, and by
fsspec elsewhere. Both are taught here, in this process, when the first s3:// is named.
"""

import functools
import importlib.util
import os
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from etils.epath import backend, gpath
from orbax.checkpoint._src.serialization import tensorstore_utils

PREFIX = 's3://'
# S3 renames nothing: a step is whole once a last object says so.
COMMIT = ocp.path.atomicity.CommitFileTemporaryPath


def path(url: str) -> epath.Path:
    """An s3:// URL as Orbax takes it; credentials, region and server are those of Amazon's tools (`check_bucket`).

    Raises:
      ValueError: the package that reads S3 is not installed.
    """
    if importlib.util.find_spec('s3fs') is None:
        raise ValueError(
            f"{url}: this needs the package s3fs (pip install 't5x_selfimprove[s3]'). Or mount the bucket as a folder "
            '(Mountpoint for Amazon S3) and name that'
        )
    _teach()
    return epath.Path(url)


def check_bucket(directory: epath.Path) -> None:
    """Asks for the bucket of a directory, if it is in S3.

    Raises:
      OSError: it is not there, or is not for us, or no server answers.
    """
    if not str(directory).startswith(PREFIX):
        return
    bucket = str(directory).removeprefix(PREFIX).partition('/')[0]
    try:
        backend.fsspec_backend.fs(directory).call_s3('head_bucket', Bucket=bucket)
    except Exception as error:  # of many kinds, of s3fs and of botocore
        raise OSError(
            f'{directory}: the bucket {bucket!r} cannot be used ({type(error).__name__}: {error}). Credentials, region '
            "and server are those of Amazon's tools: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, "
            'AWS_ENDPOINT_URL, AWS_PROFILE'
        ) from error


@functools.cache
def _teach() -> None:
    import fsspec

    # Of what another process wrote, a list that was kept would not tell.
    fsspec.config.conf.setdefault('s3', {})['use_listings_cache'] = False

    @epath.register_path_cls(PREFIX)
    class S3Path(gpath.PosixGPath):
        _backend = backend.fsspec_backend

        def rename(self, target: epath.PathLike) -> epath.Path:
            """Copies what is there and removes it; etils' own wants folders to be there before something is in them."""
            files, target, before = backend.fsspec_backend.fs(self), self._new(target), str(self).removeprefix(PREFIX)
            for key in files.find(before):
                files.copy(key, f'{target}{key.removeprefix(before)}')
            files.rm(before, recursive=True)
            return target

    tensorstore_utils.build_kvstore_tspec = functools.partial(_spec, tensorstore_utils.build_kvstore_tspec)


def _spec(build: Any, directory: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """What `build` says of a directory; of one in S3, what it says of the same one in gs://, with the other driver."""
    directory = os.fspath(directory)
    if not directory.startswith(PREFIX):
        return build(directory, *arguments, **options)
    spec = build(f'gs://{directory.removeprefix(PREFIX)}', *arguments, **options)
    place = spec.get('base', spec)
    if not {'driver', 'bucket', 'path'} <= set(place):
        raise NotImplementedError(f'{directory}: this version of Orbax says of a bucket {spec}')
    endpoint = os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
    region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
    # Which its own search would find, too, but not without many lines about files that are not there.
    credentials = {'type': 'environment'} if os.environ.get('AWS_ACCESS_KEY_ID') else None
    said = {'driver': 's3', 'endpoint': endpoint, 'aws_region': region, 'aws_credentials': credentials}
    place |= {name: value for name, value in said.items() if value}
    return spec
