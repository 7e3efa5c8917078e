"""The order of batches: a function of the seed and the step, read ahead in the background."""

import threading

import numpy as np
import pytest

from jgen.data.batches import batch_positions, permutation, train_batches
from jgen.data.dataset import Split
from jgen.errors import UserError


def test_the_order_is_pinned():
    assert permutation(0, 0, 10).tolist() == [0, 3, 5, 7, 9, 6, 2, 8, 1, 4]
    assert permutation(0, 1, 10).tolist() == [8, 5, 9, 2, 3, 7, 0, 6, 1, 4]
    assert permutation(7, 3, 10).tolist() == [5, 1, 8, 3, 9, 4, 0, 2, 7, 6]
    assert batch_positions(3, 2, 4, 10).tolist() == [6, 1, 4, 9]


def test_the_order_is_that_of_splitmix64():
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    for seed, epoch, num in ((0, 2, 7), (5, 0, 50), (2**62, 10**6, 33)):
        stream = mix((seed * golden + epoch) & mask)
        wanted = sorted(range(num), key=lambda i: mix((i * golden + stream) & mask))
        assert permutation(seed, epoch, num).tolist() == wanted


@pytest.mark.parametrize("num,batch", [(10, 4), (12, 4), (5, 8), (7, 1)])
def test_every_epoch_visits_each_example_once(num, batch):
    steps = 6 * num
    stream = np.concatenate([batch_positions(3, step, batch, num) for step in range(steps)])
    epochs = stream[: len(stream) // num * num].reshape(-1, num)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(num), epochs.shape))
    assert len({tuple(row) for row in epochs.tolist()}) > 1  # epochs differ
    other = np.concatenate([batch_positions(4, step, batch, num) for step in range(steps)])
    assert np.any(stream != other)
    # The order of one long stream, whatever the size of the batches it is cut into.
    np.testing.assert_array_equal(stream[:num], batch_positions(3, 0, num, num))
    shuffled = np.random.default_rng(0).permutation(steps)  # a pure function: not of what was asked before
    for step in shuffled[:20]:
        np.testing.assert_array_equal(batch_positions(3, int(step), batch, num), stream[step * batch :][:batch])


def test_batches_from_a_later_start_are_the_tail(digits):
    split = digits.splits["train"]
    whole = list(train_batches(split, seed=1, batch_size=100, start=0, stop=20))
    tail = list(train_batches(split, seed=1, batch_size=100, start=13, stop=20, ahead=1))
    assert len(whole) == 20 and len(tail) == 7
    for a, b in zip(whole[13:], tail):
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(a[key], b[key])
    wanted = split.fetch(batch_positions(1, 13, 100, split.num))  # this batch runs across the end of the epoch
    np.testing.assert_array_equal(tail[0]["image"], wanted["image"])


def test_an_error_while_fetching_reaches_the_consumer():
    def fetch(positions):
        if len(done) >= 3:
            raise UserError("record 7 cannot be read")
        done.append(1)
        return {"image": positions}

    done = []
    batches = train_batches(Split(10, fetch), seed=0, batch_size=2, start=0, stop=10)
    seen = []
    with pytest.raises(UserError, match="record 7"):
        for batch in batches:
            seen.append(batch)
    assert len(seen) == 3


def test_reading_ahead_stops_when_closed():

    batches = train_batches(Split(4, lambda p: {"image": p}), seed=0, batch_size=2, start=0, stop=10**9)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "jgen-batches"]
    with pytest.raises(UserError, match="empty"):
        next(train_batches(Split(0, lambda p: {}), seed=0, batch_size=2, start=0, stop=1))


@pytest.mark.parametrize("parts", [[slice(0, 40), slice(40, 100)], [np.arange(0, 100, 2), np.arange(1, 100, 2)]])
def test_processes_fetch_their_rows_only_and_together_have_the_batch(digits, parts):
    split = digits.splits["train"]
    asked = []

    def fetch(positions):
        asked.append(len(positions))
        return split.fetch(positions)

    counted = Split(split.num, fetch)
    whole = list(train_batches(split, seed=1, batch_size=100, start=12, stop=15))
    pieces = [list(train_batches(counted, seed=1, batch_size=100, start=12, stop=15, rows=rows)) for rows in parts]
    sizes = [len(np.arange(100)[rows]) for rows in parts]
    assert sorted(asked) == sorted(sizes * 3)
    for step, batch in enumerate(whole):
        for name, array in batch.items():
            for rows, piece in zip(parts, pieces):
                np.testing.assert_array_equal(piece[step][name], array[rows])
