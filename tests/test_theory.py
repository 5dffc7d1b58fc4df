"""Every worked table of the source is computed and equals what is printed."""

from __future__ import annotations

from shiftscope.theory import worked_tables

PRINTED = {
    "equivariance": {0: [0, 0, 1, 2, 1, 2, 0, 0], 1: [0, 0, 0, 1, 2, 1, 2, 0], 2: [0, 0, 0, 0, 1, 2, 1, 2]},
    "broken equivariance": {0: [0, 1, 1, 0], 1: [0, 0, 2, 2], 2: [0, 0, 1, 1]},
    "shiftability": {0: [0, 1, 1, 0], 2: [0, 0, 1, 1]},
    "local homogeneity": {
        0: [0, 0, 0, 2, 3, 1, 2, 0, 0],
        1: [0, 0, 0, 2, 3, 1, 2, 0, 0],
        2: [0, 0, 0, 0, 2, 3, 1, 2, 0],
        3: [0, 0, 0, 0, 2, 3, 1, 2, 0],
    },
}
TABLES = {table.name: table for table in worked_tables()}


def test_the_printed_tables_come_out() -> None:
    for name, rows in PRINTED.items():
        assert {row["shift"]: row["output"] for row in TABLES[name].rows} == rows


def test_movement_is_the_shift_on_the_dense_map_and_half_of_it_on_the_lattice() -> None:
    assert [row["movement"] for row in TABLES["equivariance"].rows] == [0, 1, 2]
    assert [row["movement"] for row in TABLES["shiftability"].rows] == [0, 1]


def test_the_shift_reaches_the_fully_connected_unit_and_not_the_sum() -> None:
    rows = TABLES["fully connected layer"].rows
    assert len({row["fully connected"] for row in rows}) == len(rows)
    assert len({row["sum"] for row in rows}) == 1


def test_every_table_has_columns_for_its_rows_and_a_sentence() -> None:
    for table in TABLES.values():
        assert all(tuple(row) == table.columns for row in table.rows)
        assert table.columns[:2] == ("shift", "output")
        assert table.shows.endswith((".", ")"))
