"""Web processes in front of one device process: one of them gives 10 to 14 % more images/s on two cores.

Measured twice with a device that takes 10 ms for 64 images (`python -m benchmarks.web_workers`): 817 and 947 images/s
without, 901 and 1,069 with one, 1,167 and 1,018 with two; with 8 images a request 1,638 and 1,808, 1,858 and 2,063,
2,040 and 1,642. A web process handles HTTP, keys, limits and decoding; the device process does the rest.
"""
