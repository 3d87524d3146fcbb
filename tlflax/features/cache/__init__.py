"""The content-addressed store of features on disk; it knows arrays and keys, not images.

It consists of plain .npy files under a thin index, not of a storage library, because rows are
written once and gathered at random in every epoch. Random batches of 32 from the page cache, GB/s
(medians of 3, on 2 cores shared with other work; this store has checked all checksums before):

    rows of           50 KB     128 B
    this store          8.6     0.12
    bare .npy map      12.0     1.1      no look-up, no checks: the ceiling
    ArrayRecord         1.3     0.013
    TensorStore OCDBT   1.1     0.005
    zarr3, a row a chunk 1.1    0.011    TensorStore; 0.06 at 50 KB with 32 rows a chunk

Appending is slower here (0.41 GB/s at 50 KB) than in ArrayRecord (1.5) and sharded zarr3 (0.54), at
8,000 rows a second little in comparison with computing them. An ArrayRecord file whose writer was
killed read as empty. What NumPy lacks is look-up, checksums and locks, which are here.
"""
