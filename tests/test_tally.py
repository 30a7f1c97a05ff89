"""The numbers of a round, on a batch that can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import metrics
from t5x_selfimprove.records import Questions, Samples, Verdict
from t5x_selfimprove.tally import LENGTH_BINS, SHARE_BINS, histogram, length_edges, tally

COUNT, ROOM = 4, 16  # samples a question, tokens a sample


def batch():
    """Three questions of four samples: one agreed on, one without an answer, one padding."""
    lengths = np.array([[1, 4, 16, 16], [2, 2, 2, 2], [9, 9, 9, 9]])
    found = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    ended = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    keep = np.array([[0.5, 0.5, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    mask = np.arange(ROOM) < lengths.reshape(-1, 1)
    questions = Questions(
        tokens=jnp.zeros((3, 2), jnp.int32),
        length=jnp.ones(3, jnp.int32),
        answer=jnp.zeros((3, 1), jnp.uint8),
        known=jnp.zeros(3, bool),
        weight=jnp.array([1.0, 1.0, 0.0]),
        id=jnp.zeros((3, 2), jnp.uint32),
    )
    tokens, log_probs = jnp.zeros((12, ROOM), jnp.int32), jnp.zeros((12, ROOM))
    samples = Samples(tokens, jnp.array(mask), log_probs, jnp.array(ended.ravel()))
    verdict = Verdict(
        answer=jnp.zeros((12, 1), jnp.uint8),
        found=jnp.array(found.ravel()),
        reward=jnp.zeros(12),
        keep=jnp.array(keep.ravel()),
        chosen=jnp.zeros((3, 1), jnp.uint8),
        share=jnp.array([2 / 3, 0.0, 1.0]),
        votes=jnp.array([3.0, 0.0, 4.0]),
        voted=jnp.array((found & ended).ravel()),
    )
    return questions, samples, verdict


def test_counts_by_hand():
    got = metrics.values(jax.jit(tally)(*batch()))
    assert got['questions'] == 2
    assert got['samples'] == 8
    assert got['answered'] == 4 / 8
    assert got['ended'] == 7 / 8
    assert got['truncated'] == got['truncated_answered'] == 1 / 8  # those of padding are not counted
    assert got['voted'] == 3 / 8
    assert got['mean_length'] == 45 / 8
    assert got['sampled_tokens'] == 45
    assert got['mean_vote_share'] == pytest.approx(2 / 3)  # of the one question with votes
    assert got['questions_without_answer'] == 1
    assert got['kept_questions'] == 1
    assert got['kept_paths'] == 2
    shares = np.zeros(SHARE_BINS)
    shares[13] = 1
    assert got['share_histogram'] == shares.tolist()
    lengths = np.zeros(LENGTH_BINS)
    lengths[[1, 2, 4, 15]] = [1, 4, 1, 2]
    assert got['length_histogram'] == lengths.tolist()


def test_batches_add_up():
    one = tally(*batch())
    both = metrics.summed(jax.tree.map(lambda *x: jnp.stack(x), one, one))
    assert metrics.values(both)['samples'] == 16
    assert metrics.values(both)['answered'] == 4 / 8


def test_every_share_falls_in_the_bin_that_begins_with_it():
    votes, agreed = (each.ravel() for each in np.meshgrid(np.arange(1, 65), np.arange(65)))
    votes, agreed = votes[agreed <= votes], agreed[agreed <= votes]
    shares = jnp.float32(agreed) / jnp.float32(votes)
    bins = np.minimum(agreed * SHARE_BINS // votes, SHARE_BINS - 1)  # in whole numbers
    got = jax.vmap(lambda share: histogram(share[None], jnp.ones(1), 1.0, SHARE_BINS))(shares)
    wrong = [f'{agreed[row]}/{votes[row]}' for row in np.flatnonzero(np.asarray(got).argmax(axis=1) != bins)]
    assert not wrong


def test_edges_say_which_lengths_a_bin_holds():
    edges = length_edges(ROOM)
    assert len(edges) == LENGTH_BINS + 1 and (edges[0], edges[-1]) == (0, ROOM)
    for length in range(ROOM + 1):
        bins = np.asarray(histogram(jnp.array([float(length)]), jnp.ones(1), ROOM, LENGTH_BINS))
        here = int(bins.argmax())
        assert edges[here] <= length < edges[here + 1] or (length == ROOM and here == LENGTH_BINS - 1)
