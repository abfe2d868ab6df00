"""Traffic counts what a kernel touches."""

from kaun.compiler.ir import dtypes, ops
from kaun.compiler.schedule.traffic import traffic_bytes


def array(identity, shape, dtype=dtypes.float32):
    return ops.input_(identity=identity, dtype=dtype, shape=shape)


def test_an_array_counts_once_however_often_it_is_read():
    a = array(0, (5, 7))
    product = ops.mul(a, a)
    assert traffic_bytes([a], [product], [product]) == 2 * 4 * 35


def test_a_table_counts_as_the_rows_gathered_from_it():
    table, places = array(0, (1000, 8)), array(1, (3,), dtypes.int32)
    rows = ops.gather(table, places)
    assert traffic_bytes([table, places], [rows], [rows]) == 4 * (24 + 3 + 24)


def test_a_small_table_counts_no_more_than_itself():
    table, places = array(0, (2, 8)), array(1, (50,), dtypes.int32)
    rows = ops.gather(table, places)
    assert traffic_bytes([table, places], [rows], [rows]) == 4 * (16 + 50 + 400)


def test_a_table_that_is_also_read_whole_counts_whole():
    table, places = array(0, (1000, 8)), array(1, (3,), dtypes.int32)
    rows, total = ops.gather(table, places), ops.reduce_sum(table, axes=(0, 1))
    assert traffic_bytes([table, places], [rows, total], [rows, total]) == 4 * (8000 + 3 + 24 + 1)
    turned = ops.gather(ops.permute(table, axes=(1, 0)), array(2, (1,), dtypes.int32))
    assert traffic_bytes([table], [turned], [turned.inputs[0], turned]) == 4 * (1000 + 1000)


def test_an_array_that_is_sliced_counts_as_what_is_taken():
    long = array(0, (1000, 8))
    start = ops.slice_(long, starts=(0, 0), stops=(10, 8), steps=(1, 1))
    assert traffic_bytes([long], [start], [start]) == 4 * (80 + 80)
    turned = ops.neg(ops.permute(start, axes=(1, 0)))
    other = ops.neg(ops.slice_(long, starts=(500, 0), stops=(1000, 8), steps=(2, 1)))
    computed = [start, turned.inputs[0], turned, other.inputs[0], other]
    assert traffic_bytes([long], [turned, other], computed) == 4 * (80 + 2000 + 80 + 2000)
    whole = ops.reduce_sum(long, axes=(0, 1))
    assert traffic_bytes([long], [turned, whole], [*computed, whole]) == 4 * (8000 + 80 + 1)


def test_pieces_of_an_array_count_no_more_than_itself():
    square = array(0, (10, 10))
    pieces = [ops.slice_(square, starts=(k, 0), stops=(k + 8, 10), steps=(1, 1)) for k in range(3)]
    total = ops.add(ops.add(pieces[0], pieces[1]), pieces[2])
    assert traffic_bytes([square], [total], [*pieces, total.inputs[0], total]) == 4 * (100 + 80)
