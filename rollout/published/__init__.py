"""Published test sets as problems, for `plumbline evaluate --suite`.

sets    the table: where each set is published, its columns, how often each problem is sampled
rows    how a row in its published shape becomes a problem
load    finds the rows of a set, in a local file or on the hub
"""
