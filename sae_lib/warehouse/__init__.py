"""Results: typed rows, one Parquet file per partition, one DuckDB file published from them.

`rows` says what evaluations, explanations and applications return, `tables` how it is stored;
`write` writes a partition, `publish` builds the database, `query` reads it. The views and the macro
``compare(a, b)`` are in ``views.sql``.
"""
