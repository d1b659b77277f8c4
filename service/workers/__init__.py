"""Web processes in front of one device process: 10 to 14 % more images/s with one of them.

Two cores, a device of 10 ms for 64 images, code of bead872, two runs: 817 and 947 images/s without, 901 and 1,069 with
one, 1,167 and 1,018 with two; 8 images a request: 1,638 and 1,808; 1,858 and 2,063; 2,040 and 1,642.
"""
